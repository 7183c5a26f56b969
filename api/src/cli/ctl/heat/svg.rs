//! The picture as SVG.

use std::fmt::Write;

use super::picture::{Anchor, Area, Canvas, Picture, TEXT};

/// The SVG document.
pub fn svg(picture: &Picture) -> String {
    let mut drawing = Drawing::default();
    picture.draw(&mut drawing);
    let (width, height) = (picture.width, picture.height);
    format!(
        concat!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" "#,
            r#"font-family="sans-serif" font-size="{t}" shape-rendering="crispEdges">"#,
            "\n<rect width=\"{w}\" height=\"{h}\" fill=\"#fff\"/>\n{body}</svg>\n"
        ),
        w = width,
        h = height,
        t = TEXT,
        body = drawing.finish(),
    )
}

/// Areas of one colour in a row are one path: the cells of a map are many.
#[derive(Debug, Default)]
struct Drawing {
    text: String,
    open: Option<[u8; 3]>,
}

impl Drawing {
    fn close(&mut self) {
        if let Some([red, green, blue]) = self.open.take() {
            // Writing to a string does not fail.
            let _ = writeln!(self.text, r##"" fill="#{red:02x}{green:02x}{blue:02x}"/>"##);
        }
    }

    fn finish(mut self) -> String {
        self.close();
        self.text
    }
}

impl Canvas for Drawing {
    fn fill(&mut self, area: Area, colour: [u8; 3]) {
        if self.open != Some(colour) {
            self.close();
            self.text.push_str(r#"<path d=""#);
            self.open = Some(colour);
        }
        let _ = write!(self.text, "M{} {}h{}v{}h-{}z", area.x, area.y, area.width, area.height, area.width);
    }

    fn text(&mut self, x: u32, y: u32, anchor: Anchor, text: &str) {
        self.close();
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        // Down by a third of the height: the point is the text's middle, SVG's is its base line.
        let _ = writeln!(
            self.text,
            r#"<text x="{x}" y="{}" text-anchor="{anchor}">{}</text>"#,
            y + TEXT / 3,
            escaped(text)
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::plot::tests::made_up;
    use super::*;

    #[test]
    fn the_document_is_well_formed_and_has_the_texts() {
        let text = svg(&Picture::new(&made_up(256), 1000).unwrap());
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        // Every element is closed in its own line, and every quote has its partner.
        for line in text.lines().skip(1).take_while(|line| *line != "</svg>") {
            assert!(line.ends_with("/>") || line.ends_with("</text>"), "{line}");
            assert_eq!(line.matches('"').count() % 2, 0, "{line}");
        }
        assert!(text.contains(">guest physical address</text>"));
        assert!(text.len() < 200_000, "{} bytes", text.len());
    }

    #[test]
    fn what_means_something_in_xml_is_escaped() {
        assert_eq!(escaped("a<b & c>d"), "a&lt;b &amp; c&gt;d");
    }
}
