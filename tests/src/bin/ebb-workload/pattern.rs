//! What the workload's pages hold: bytes that follow from (seed, page number, generation), some pages compressible, some not, some all zero.
//!
//! Promises: the same three numbers give the same bytes; a page that got another page's bytes, an older generation's, or none, is told apart from
//! the right one, zero pages excepted. Must never: allocate.

/// A page of guest memory, aligned as the guest's own pages are, so that a zero page here is a zero page there.
#[repr(align(4096))]
#[derive(Clone, Copy)]
pub struct Page(pub [u64; WORDS]);

/// Words in a page.
pub const WORDS: usize = 512;

/// A page of zeros.
pub const ZERO: Page = Page([0; WORDS]);

/// Steele and Vigna's splitmix64: every seed is a good one, and neighbouring seeds give unrelated streams.
struct Splitmix(u64);

impl Splitmix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How a page is made up. The share of each kind is what one finds in guests: zero pages are common, noise is rare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All zero.
    Zero,
    /// One word again and again.
    Constant,
    /// Words from a small vocabulary, as in text and tables.
    Text,
    /// Noise first, zeros behind it.
    HalfNoise,
    /// Noise: does not compress.
    Noise,
}

impl Kind {
    /// The kind of a page, by its number only: a page keeps its kind over generations.
    pub fn of(seed: u64, index: u64) -> Self {
        match Splitmix(seed ^ index.rotate_left(17)).next() % 8 {
            0 => Self::Zero,
            1 => Self::Constant,
            2 | 3 => Self::Text,
            4 | 5 => Self::HalfNoise,
            _ => Self::Noise,
        }
    }
}

/// Fills a page.
pub fn fill(page: &mut Page, seed: u64, index: u64, generation: u32) {
    let kind = Kind::of(seed, index);
    let mut stream = Splitmix(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (index << 20) ^ u64::from(generation));
    let words = &mut page.0;
    match kind {
        Kind::Zero => words.fill(0),
        Kind::Constant => words.fill(stream.next() | 1),
        Kind::Text => {
            let vocabulary: [u64; 16] = std::array::from_fn(|_| stream.next());
            let mut choices = 0;
            for (at, word) in words.iter_mut().enumerate() {
                if at % 16 == 0 {
                    choices = stream.next();
                }
                *word = vocabulary[usize::try_from(choices & 15).unwrap_or(0)];
                choices >>= 4;
            }
        }
        Kind::HalfNoise => {
            let (noise, zeros) = words.split_at_mut(WORDS / 2);
            noise.fill_with(|| stream.next());
            zeros.fill(0);
        }
        Kind::Noise => words.fill_with(|| stream.next()),
    }
}

/// How many bytes of the page are not what they must be.
pub fn wrong_bytes(page: &Page, seed: u64, index: u64, generation: u32) -> usize {
    let mut expected = ZERO;
    fill(&mut expected, seed, index, generation);
    if page.0 == expected.0 {
        return 0;
    }
    let differing =
        |(found, right): (&u64, &u64)| (found ^ right).to_le_bytes().iter().filter(|byte| **byte != 0).count();
    page.0.iter().zip(&expected.0).map(differing).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(seed: u64, index: u64, generation: u32) -> Page {
        let mut page = ZERO;
        fill(&mut page, seed, index, generation);
        page
    }

    #[test]
    fn every_kind_occurs_about_as_often_as_it_should() {
        let count = |kind| (0..8000).filter(|index| Kind::of(7, *index) == kind).count();
        for (kind, share) in
            [(Kind::Zero, 1), (Kind::Constant, 1), (Kind::Text, 2), (Kind::HalfNoise, 2), (Kind::Noise, 2)]
        {
            let found = count(kind);
            assert!((800 * share..1200 * share).contains(&found), "{kind:?}: {found}");
        }
    }

    #[test]
    fn a_page_in_the_wrong_place_or_of_another_generation_or_seed_is_seen() {
        for index in 0..200 {
            let right = page(3, index, 5);
            assert_eq!(wrong_bytes(&right, 3, index, 5), 0);
            if Kind::of(3, index) == Kind::Zero {
                assert_eq!(right.0, ZERO.0);
                continue;
            }
            assert!(wrong_bytes(&right, 3, index, 4) > 1000, "generation, page {index}");
            assert!(wrong_bytes(&ZERO, 3, index, 5) > 1000, "zero, page {index}");
            let neighbour = (1..)
                .map(|step| index + step)
                .find(|other| Kind::of(3, *other) == Kind::of(3, index))
                .expect("endless");
            assert!(wrong_bytes(&page(3, neighbour, 5), 3, index, 5) > 1000, "page {index} holding {neighbour}");
        }
    }

    #[test]
    fn one_flipped_bit_is_one_wrong_byte() {
        for index in 0..16 {
            let mut flipped = page(9, index, 1);
            flipped.0[511] ^= 1 << 63;
            assert_eq!(wrong_bytes(&flipped, 9, index, 1), 1);
        }
    }
}
