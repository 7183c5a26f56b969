//! The picture as PNG.

use std::io::{self, Write};

use super::font::{ADVANCE, GLYPH_HEIGHT, GLYPH_WIDTH, drop_of, glyph};
use super::picture::{Anchor, Area, Canvas, Picture, TEXT};

/// Pixels of a font's dot.
const DOT: u32 = TEXT / GLYPH_HEIGHT;

/// Writes the picture.
pub fn png(picture: &Picture, out: impl Write) -> io::Result<()> {
    let mut raster = Raster::new(picture.width, picture.height);
    picture.draw(&mut raster);
    let mut encoder = png::Encoder::new(out, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(raster.pixels.as_flattened())?;
    Ok(writer.finish()?)
}

/// Pixels, line by line.
#[derive(Debug)]
struct Raster {
    width: u32,
    pixels: Vec<[u8; 3]>,
}

impl Raster {
    fn new(width: u32, height: u32) -> Self {
        let count = usize::try_from(width).unwrap_or(0) * usize::try_from(height).unwrap_or(0);
        Self { width, pixels: vec![[255; 3]; count] }
    }
}

impl Canvas for Raster {
    fn fill(&mut self, area: Area, colour: [u8; 3]) {
        let width = usize::try_from(self.width).unwrap_or(1);
        let span =
            |start: u32, len: u32| usize::try_from(start).unwrap_or(0)..usize::try_from(start + len).unwrap_or(0);
        for line in self.pixels.chunks_mut(width).take(span(area.y, area.height).end).skip(span(area.y, 0).start) {
            let across = span(area.x, area.width);
            if let Some(part) = line.get_mut(across.start..across.end.min(width)) {
                part.fill(colour);
            }
        }
    }

    fn text(&mut self, x: u32, y: u32, anchor: Anchor, text: &str) {
        let width = u32::try_from(text.chars().count()).unwrap_or(0) * ADVANCE * DOT;
        let left = match anchor {
            Anchor::Start => x,
            Anchor::Middle => x.saturating_sub(width / 2),
            Anchor::End => x.saturating_sub(width),
        };
        let top = y.saturating_sub(TEXT / 2);
        for (number, character) in (0..).zip(text.chars()) {
            for (row, bits) in (drop_of(character)..).zip(glyph(character)) {
                for column in (0..GLYPH_WIDTH).filter(|column| bits >> (GLYPH_WIDTH - 1 - column) & 1 == 1) {
                    let x = left + (number * ADVANCE + column) * DOT;
                    self.fill(Area { x, y: top + row * DOT, width: DOT, height: DOT }, [0; 3]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plot::tests::made_up;
    use super::super::shade::{LEVELS, colour};
    use super::*;

    #[test]
    fn the_file_is_a_png_of_the_pictures_size_with_the_hot_stripe_in_it() {
        let picture = Picture::new(&made_up(100), 800).unwrap();
        let mut file = Vec::new();
        png(&picture, &mut file).unwrap();
        let mut reader = png::Decoder::new(io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((frame.width, frame.height), (picture.width, picture.height));
        let count = |wanted: [u8; 3]| pixels.as_chunks::<3>().0.iter().filter(|pixel| **pixel == wanted).count();
        // 16 of 256 buckets, each two pixels high, 100 scans of five pixels; and a bar of the legend, four pixels wide.
        assert_eq!(count(colour(LEVELS - 1)), 32 * 500 + 4 * 14);
        assert!(count([0; 3]) > 2000, "there is text");
    }

    #[test]
    fn every_character_that_is_written_has_a_shape() {
        struct Check;
        impl Canvas for Check {
            fn fill(&mut self, _area: Area, _colour: [u8; 3]) {}

            fn text(&mut self, _x: u32, _y: u32, _anchor: Anchor, text: &str) {
                for character in text.chars().filter(|character| *character != ' ') {
                    assert_ne!(glyph(character), [0; 7], "'{character}' of {text}");
                }
            }
        }
        for rows in [1, 100, 256] {
            Picture::new(&made_up(rows), 1000).unwrap().draw(&mut Check);
        }
        Check.text(0, 0, Anchor::Start, "0123456789.,:;%-()/' KMGTiBshmn");
    }
}
