//! Shares as shades: from nothing touched (dark) to everything touched (bright).
//!
//! Promises: one scale for terminal, SVG and PNG; brightness grows with the square root of the share, so that a bucket of which one page in a
//! hundred is used can still be told from one that is not used at all. Must never: show a share above zero like zero.

/// Levels of the pictures.
pub const LEVELS: u8 = 64;

/// Where the legend has its numbers: in percent.
pub const LEGEND_PERCENT: [u32; 5] = [0, 5, 25, 50, 100];

/// Brightness of a share, both from 0 to 1.
pub fn brightness(share: f64) -> f64 {
    share.clamp(0.0, 1.0).sqrt()
}

/// The level of a share out of `levels` (at least 2); 0 is for nothing at all.
pub fn level(share: f64, levels: u8) -> u8 {
    let top = f64::from(levels - 1);
    let wanted = brightness(share) * top;
    // Counted up rather than cast: a cast from floating point would have to be argued about.
    let rounded = (0..levels).take_while(|level| f64::from(*level) <= wanted + 0.5).last().unwrap_or(0);
    if share > 0.0 { rounded.max(1) } else { 0 }
}

/// Points of the colour scale, evenly spaced: dark blue by way of purple and orange to pale yellow. Brightness rises all the way, so that it
/// can be read without seeing colours.
const SCALE: [[u8; 3]; 7] =
    [[13, 14, 28], [46, 20, 92], [110, 28, 110], [174, 46, 92], [229, 92, 48], [251, 165, 10], [252, 252, 170]];

/// The colour of a level out of [`LEVELS`].
pub fn colour(level: u8) -> [u8; 3] {
    let last = SCALE.len() - 1;
    let top = usize::from(LEVELS - 1);
    let place = usize::from(level.min(LEVELS - 1)) * last;
    let (from, part) = (place / top, place % top);
    let (low, high) = (SCALE[from], SCALE[(from + 1).min(last)]);
    std::array::from_fn(|channel| {
        let mixed = usize::from(low[channel]) * (top - part) + usize::from(high[channel]) * part;
        u8::try_from(mixed / top).unwrap_or(u8::MAX)
    })
}

/// The same scale in a terminal's 256 colours, from nothing to all.
pub const TERMINAL: [u8; 13] = [233, 17, 18, 54, 90, 126, 161, 197, 203, 209, 215, 221, 229];

/// The same without colours.
pub const PLAIN: [char; 10] = [' ', '.', ':', '-', '=', '+', '*', '#', '%', '@'];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_dark_all_is_bright_and_a_trace_shows() {
        for levels in [2, 10, 13, LEVELS] {
            assert_eq!((level(0.0, levels), level(1.0, levels)), (0, levels - 1));
            assert_eq!(level(1e-9, levels), 1);
        }
        assert_eq!((colour(0), colour(LEVELS - 1)), (SCALE[0], SCALE[6]));
    }

    #[test]
    fn levels_rise_with_the_share_and_colours_with_the_level() {
        let levels: Vec<u8> = (0..=1000).map(|n| level(f64::from(n) / 1000.0, LEVELS)).collect();
        assert!(levels.is_sorted());
        let bright =
            |level| colour(level).map(u32::from).iter().zip([2, 7, 1]).map(|(c, weight)| c * weight).sum::<u32>();
        assert!((1..LEVELS).all(|level| bright(level) > bright(level - 1)));
    }
}
