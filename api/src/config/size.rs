//! Sizes in bytes as people write and read them: `512M`, `1GiB`, `4096`.
//!
//! Promises: K, M and G are powers of 1024; nothing is rounded when parsing. Must never: accept a number that does not fit 64 bits.

/// Why a size was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No digits, or something after the unit.
    #[error("'{0}' is not a size: digits and K, M or G expected, as in 512M")]
    Form(String),
    /// Beyond 64 bits.
    #[error("'{0}' is larger than 2^64 bytes")]
    TooLarge(String),
}

/// Reads a size: digits, then nothing or `B` for bytes, or `K`, `M`, `G` with an optional `B` or `iB`; upper or lower case.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::Form(text.to_owned()));
    }
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(SizeError::Form(text.to_owned())),
    };
    let too_large = || SizeError::TooLarge(text.to_owned());
    let number: u64 = number.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).ok_or_else(too_large)
}

/// Shows a number of bytes with at most four digits: `12.3 MiB`, `512 B`.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        let whole = bytes >> shift;
        if whole == 0 {
            continue;
        }
        let rest = bytes & ((1 << shift) - 1);
        // Tenths are enough for people; cut, not rounded, so that 1023.99 never shows as 1024.
        let tenth = (u128::from(rest) * 10) >> shift;
        return if rest == 0 || whole >= 1000 { format!("{whole} {unit}") } else { format!("{whole}.{tenth} {unit}") };
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_units_with_or_without_their_tail() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("17B", 17),
            ("1K", 1 << 10),
            ("1k", 1 << 10),
            ("2KB", 2 << 10),
            ("2KiB", 2 << 10),
            ("256M", 256 << 20),
            ("3mib", 3 << 20),
            ("4G", 4 << 30),
            ("17179869183G", 17_179_869_183 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_text() {
        for text in ["", "M", "-1", "+1", "1.5G", "1 G", "1T", "1Kb i", "0x10", "1iB", "١M", "1Mé"] {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error, SizeError::Form(text.to_owned()), "{text}");
            assert!(error.to_string().contains(&format!("'{text}'")));
        }
        for text in ["18446744073709551616", "17179869184G", "99999999999999999999999K"] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge(text.to_owned())));
        }
        assert_eq!(parse_size("17179869184G").unwrap_err().to_string(), "'17179869184G' is larger than 2^64 bytes");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_size_or_refused(text in ".{0,24}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn what_is_written_in_whole_units_is_read_to_the_byte(number in 0u64..1 << 34, unit in 0usize..4) {
            let text = format!("{number}{}", ["", "K", "M", "G"][unit]);
            proptest::prop_assert_eq!(parse_size(&text), Ok(number << (10 * unit)));
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (256 << 20, "256 MiB"),
            ((1 << 30) - 1, "1023 MiB"),
            ((5 << 30) + (1 << 29), "5.5 GiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
