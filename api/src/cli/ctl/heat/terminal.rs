//! The heat map in a terminal.
//!
//! With colours, a character shows two lines of the map: the upper half block in one shade on a ground of another. Without, a character is one
//! cell, denser where it is hotter. Promises: no line is longer than the width asked for; without colours nothing but ASCII. Must never: send
//! colours to what is no terminal unasked.

use memtier::insight::HeatMap;

use super::plot::{MEANING, Mark, Plot, Room, TITLE};
use super::shade::{LEGEND_PERCENT, PLAIN, TERMINAL, level};

/// Room for an address and a space.
const LABEL: usize = 10;
/// Characters from one time to the next.
const TIME_GAP: usize = 12;
/// Characters down.
const LINES: usize = 32;
/// The widest that few columns are drawn.
const MAX_STRETCH: usize = 6;

/// Draws a map `width` characters wide; `None` if there is nothing to draw.
pub fn draw(map: &HeatMap, width: usize, colours: bool) -> Option<String> {
    let room = width.saturating_sub(LABEL).max(1);
    // A column is at least as wide as makes few scans fill the line.
    let stretch = (room / map.rows.len().max(1)).clamp(1, MAX_STRETCH);
    let per_character = if colours { 2 } else { 1 };
    let plot = Plot::new(
        map,
        Room {
            width: room / stretch,
            height: LINES * per_character,
            address_gap: 3 * per_character,
            time_gap: TIME_GAP.div_ceil(stretch),
        },
    )?;
    let mut text = format!("{TITLE}: {MEANING}\n\n");
    for line in (0..plot.height).step_by(per_character) {
        let mark = plot.addresses.iter().find(|mark| (line..line + per_character).contains(&mark.at));
        let label = mark.map_or("", |mark| mark.text.as_str());
        let cells = if colours { coloured(&plot, line, stretch) } else { plain(&plot, line, stretch) };
        let whole = format!("{label:>width$} {cells}", width = LABEL - 1);
        text.push_str(whole.trim_end());
        text.push('\n');
    }
    text.push_str(&times(&plot.times, stretch, room));
    text.push_str(&format!("\n{}\n{}; times since the guest's start\n", legend(colours), plot.cell));
    Some(text)
}

fn coloured(plot: &Plot, line: usize, stretch: usize) -> String {
    let shade = |column: usize, line: usize| {
        let level = level(plot.share(column, line), u8::try_from(TERMINAL.len()).unwrap_or(u8::MAX));
        TERMINAL[usize::from(level)]
    };
    let (mut text, mut now) = (String::new(), None);
    for column in 0..plot.width {
        let upper = shade(column, line);
        let lower = (line + 1 < plot.height).then(|| shade(column, line + 1));
        if now != Some((upper, lower)) {
            now = Some((upper, lower));
            // 49 is the terminal's own ground, below a last line without a partner.
            let ground = lower.map_or("49".to_owned(), |lower| format!("48;5;{lower}"));
            text.push_str(&format!("\x1b[38;5;{upper};{ground}m"));
        }
        (0..stretch).for_each(|_| text.push('▀'));
    }
    text + "\x1b[0m"
}

fn plain(plot: &Plot, line: usize, stretch: usize) -> String {
    let cell = |column| {
        let level = level(plot.share(column, line), u8::try_from(PLAIN.len()).unwrap_or(u8::MAX));
        PLAIN[usize::from(level)].to_string().repeat(stretch)
    };
    (0..plot.width).map(cell).collect()
}

fn times(marks: &[Mark], stretch: usize, room: usize) -> String {
    let (mut ticks, mut texts) = (String::new(), String::new());
    for mark in marks {
        let at = mark.at * stretch;
        // The last one may have no room to its right.
        if at + mark.text.chars().count() > room {
            continue;
        }
        ticks.push_str(&" ".repeat(at.saturating_sub(ticks.len())));
        ticks.push('|');
        texts.push_str(&" ".repeat(at.saturating_sub(texts.len())));
        texts.push_str(&mark.text);
    }
    format!("{:LABEL$}{ticks}\n{:LABEL$}{texts}\n", "", "")
}

fn legend(colours: bool) -> String {
    let shade = |percent: u32| {
        let share = f64::from(percent) / 100.0;
        if colours {
            let level = level(share, u8::try_from(TERMINAL.len()).unwrap_or(u8::MAX));
            format!("\x1b[48;5;{}m  \x1b[0m", TERMINAL[usize::from(level)])
        } else {
            let level = level(share, u8::try_from(PLAIN.len()).unwrap_or(u8::MAX));
            format!("'{}'", PLAIN[usize::from(level)])
        }
    };
    let parts: Vec<String> = LEGEND_PERCENT.iter().map(|percent| format!("{} {percent}%", shade(*percent))).collect();
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::super::plot::tests::made_up;
    use super::*;

    #[test]
    fn without_colours_it_is_ascii_within_the_width_with_addresses_times_and_a_legend() {
        for width in [20, 40, 80, 200] {
            let text = draw(&made_up(100), width, false).unwrap();
            assert!(text.is_ascii());
            let map = text.lines().skip(2).take(LINES + 2);
            assert!(map.clone().all(|line| !line.ends_with(' ')), "no tails");
            assert!(map.clone().all(|line| line.len() <= width), "{width}:\n{text}");
            assert_eq!(
                map.clone().filter(|line| line.contains('@')).count(),
                2,
                "the hot stripe is two lines:\n{text}"
            );
        }
        let text = draw(&made_up(100), 80, false).unwrap();
        for part in ["4 GiB", "512 MiB", "2:50 min", "'@' 100%", "a cell is 128 MiB by up to 2 scans", TITLE] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn with_colours_a_character_is_two_lines_and_every_line_ends_plain() {
        let text = draw(&made_up(30), 80, true).unwrap();
        let map: Vec<&str> = text.lines().skip(2).take(LINES).collect();
        assert!(map.iter().all(|line| line.ends_with("\x1b[0m")), "{text}");
        assert!(map[0].contains("\x1b[38;5;229;48;5;229m▀"), "{text}");
        assert_eq!(map[1].matches('▀').count(), 60, "30 scans, each two wide");
        assert!(!map[31].contains("229"), "{text}");
    }

    #[test]
    fn few_scans_are_stretched_and_none_is_nothing() {
        let text = draw(&made_up(2), 80, false).unwrap();
        assert_eq!(text.lines().nth(2).unwrap().matches('@').count(), 2 * MAX_STRETCH);
        assert!(draw(&made_up(0), 80, true).is_none());
        assert!(draw(&made_up(5), 0, false).is_some());
    }
}
