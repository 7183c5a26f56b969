//! The heat map as a picture: title, axes with units, cells, legend; drawn on whatever can take rectangles and text.
//!
//! Promises: SVG and PNG show the same. Must never: write outside the picture's size.

use memtier::insight::HeatMap;

use super::plot::{MEANING, Plot, Room, TITLE};
use super::shade::{LEGEND_PERCENT, LEVELS, brightness, colour, level};

/// The least and the largest width of a picture in pixels.
pub const WIDTHS: std::ops::RangeInclusive<u32> = 600..=8000;
/// The width when none is given.
pub const DEFAULT_WIDTH: u32 = 1000;

/// Height of all text.
pub const TEXT: u32 = 14;
const LEFT: u32 = 110;
/// Room for a time that begins at the cells' edge.
const RIGHT: u32 = 8 * TEXT;
const TOP: u32 = 90;
const BELOW: u32 = 150;
/// The cells' height in all, or a little less where it can't be divided evenly.
const HEIGHT: u32 = 512;
const TICK: u32 = 6;
const LEGEND_WIDTH: u32 = 256;
const LEGEND_HEIGHT: u32 = 14;

/// A place and a size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// From the left.
    pub x: u32,
    /// From the top.
    pub y: u32,
    /// Across.
    pub width: u32,
    /// Down.
    pub height: u32,
}

/// Where a text stands, from its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The point is its left end.
    Start,
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

/// What a picture can be drawn on. Later things lie over earlier ones.
pub trait Canvas {
    /// Fills an area.
    fn fill(&mut self, area: Area, colour: [u8; 3]);
    /// Writes a line of ASCII text in black; `y` is its middle.
    fn text(&mut self, x: u32, y: u32, anchor: Anchor, text: &str);
}

/// A picture before it is drawn.
#[derive(Debug)]
pub struct Picture {
    plot: Plot,
    /// Pixels of a cell across and down.
    cell: (u32, u32),
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

impl Picture {
    /// A picture about `width` pixels wide; `None` if there is nothing to draw.
    pub fn new(map: &HeatMap, width: u32) -> Option<Self> {
        let width = width.clamp(*WIDTHS.start(), *WIDTHS.end());
        let across = width - LEFT - RIGHT;
        let rows = u32::try_from(map.rows.len()).unwrap_or(u32::MAX).clamp(1, across);
        let buckets = u32::try_from(map.columns.len()).unwrap_or(u32::MAX).clamp(1, HEIGHT);
        let cell = (across / rows, HEIGHT / buckets);
        let count = |pixels: u32| usize::try_from(pixels).unwrap_or(usize::MAX);
        let room = Room {
            width: count(rows),
            height: count(buckets),
            address_gap: count((3 * TEXT).div_ceil(cell.1)),
            time_gap: count((10 * TEXT).div_ceil(cell.0)),
        };
        let plot = Plot::new(map, room)?;
        // What is left over where cells don't fill the width is not kept, as far as the texts have room.
        let width = (LEFT + cell.0 * pixels(plot.width) + RIGHT).max(*WIDTHS.start());
        let height = TOP + cell.1 * pixels(plot.height) + BELOW;
        Some(Self { plot, cell, width, height })
    }

    /// Draws it.
    pub fn draw(&self, canvas: &mut dyn Canvas) {
        canvas.text(LEFT, TEXT + 6, Anchor::Start, TITLE);
        canvas.text(LEFT, 2 * TEXT + 12, Anchor::Start, &self.plot.cell);
        canvas.text(8, TOP - TEXT - 10, Anchor::Start, "guest physical address");
        self.cells(canvas);
        self.axes(canvas);
        self.legend(canvas);
    }

    fn down(&self) -> u32 {
        self.height - TOP - BELOW
    }

    fn across(&self) -> u32 {
        self.cell.0 * pixels(self.plot.width)
    }

    fn cells(&self, canvas: &mut dyn Canvas) {
        for line in 0..self.plot.height {
            let mut run = (0, level(self.plot.share(0, line), LEVELS));
            // One rectangle for neighbours of one shade.
            for column in 1..=self.plot.width {
                let here = (column < self.plot.width).then(|| level(self.plot.share(column, line), LEVELS));
                if here == Some(run.1) {
                    continue;
                }
                let area = Area {
                    x: LEFT + self.cell.0 * pixels(run.0),
                    y: self.y(line),
                    width: self.cell.0 * pixels(column - run.0),
                    height: self.cell.1,
                };
                canvas.fill(area, colour(run.1));
                run = (column, here.unwrap_or(0));
            }
        }
    }

    fn y(&self, line: usize) -> u32 {
        TOP + self.cell.1 * pixels(line)
    }

    fn axes(&self, canvas: &mut dyn Canvas) {
        let bottom = TOP + self.down();
        for mark in &self.plot.addresses {
            let y = self.y(mark.at);
            canvas.fill(Area { x: LEFT - TICK, y, width: TICK, height: 1 }, BLACK);
            canvas.text(LEFT - TICK - 4, y, Anchor::End, &mark.text);
        }
        for line in &self.plot.borders {
            canvas.fill(Area { x: LEFT, y: self.y(*line), width: self.across(), height: 1 }, WHITE);
        }
        for mark in &self.plot.times {
            let x = LEFT + self.cell.0 * pixels(mark.at);
            canvas.fill(Area { x, y: bottom, width: 1, height: TICK }, BLACK);
            canvas.text(x, bottom + TICK + TEXT, Anchor::Start, &mark.text);
        }
        canvas.text(LEFT, bottom + TICK + 3 * TEXT, Anchor::Start, "time since the guest's start");
    }

    fn legend(&self, canvas: &mut dyn Canvas) {
        let y = self.height - 48;
        let step = LEGEND_WIDTH / u32::from(LEVELS);
        for level in 0..LEVELS {
            let x = LEFT + step * u32::from(level);
            canvas.fill(Area { x, y, width: step, height: LEGEND_HEIGHT }, colour(level));
        }
        for percent in LEGEND_PERCENT {
            let place = brightness(f64::from(percent) / 100.0) * f64::from(LEGEND_WIDTH);
            let x = LEFT + (0..LEGEND_WIDTH).take_while(|x| f64::from(*x) < place).count().try_into().unwrap_or(0_u32);
            canvas.fill(Area { x, y: y + LEGEND_HEIGHT, width: 1, height: TICK }, BLACK);
            canvas.text(x, y + LEGEND_HEIGHT + TICK + TEXT - 4, Anchor::Middle, &format!("{percent}%"));
        }
        canvas.text(LEFT, y - TEXT, Anchor::Start, MEANING);
    }
}

const BLACK: [u8; 3] = [0; 3];
const WHITE: [u8; 3] = [255; 3];

fn pixels(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::plot::tests::made_up;
    use super::*;

    /// Notes what is drawn.
    #[derive(Default)]
    struct Notes {
        areas: Vec<(Area, [u8; 3])>,
        texts: Vec<(u32, u32, String)>,
    }

    impl Canvas for Notes {
        fn fill(&mut self, area: Area, colour: [u8; 3]) {
            self.areas.push((area, colour));
        }

        fn text(&mut self, x: u32, y: u32, _anchor: Anchor, text: &str) {
            self.texts.push((x, y, text.to_owned()));
        }
    }

    #[test]
    fn everything_is_inside_and_axes_title_and_units_are_there() {
        for (rows, width) in [(1, 600), (7, 1000), (256, 1000), (256, 600), (100, 3000), (300, 100)] {
            let picture = Picture::new(&made_up(rows), width).unwrap();
            let mut notes = Notes::default();
            picture.draw(&mut notes);
            for (area, _) in &notes.areas {
                assert!(area.x + area.width <= picture.width && area.y + area.height <= picture.height, "{area:?}");
            }
            assert!(notes.texts.iter().all(|(x, y, _)| *x < picture.width && *y < picture.height));
            let has = |part: &str| notes.texts.iter().any(|(_, _, text)| text.contains(part));
            for part in
                [TITLE, MEANING, "guest physical address", "time since the guest's start", "4 GiB", "100%", "16 MiB"]
            {
                assert!(has(part), "{part} in {:?}", notes.texts);
            }
        }
    }

    #[test]
    fn the_cells_cover_the_plot_and_nothing_twice() {
        let picture = Picture::new(&made_up(50), 1000).unwrap();
        let mut notes = Notes::default();
        picture.cells(&mut notes);
        let covered: u64 = notes.areas.iter().map(|(area, _)| u64::from(area.width) * u64::from(area.height)).sum();
        assert_eq!(covered, u64::from(picture.across()) * u64::from(picture.down()));
        assert!(notes.areas.len() < 1000, "{} rectangles for a few stripes", notes.areas.len());
    }
}
