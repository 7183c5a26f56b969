//! The zipf distribution as a table that the image can draw from without floating point.

use super::abi::ZIPF_STEPS;

/// Quantiles of a zipf distribution with exponent `theta` over `pages` pages, page 0 the most popular: entry `i` is the first page whose
/// cumulative probability is above `i / ZIPF_STEPS`; one more entry ends the last interval. Drawing an entry uniformly, then a page
/// uniformly from there to the next entry, draws from the distribution.
pub fn quantiles(pages: u32, theta: f64) -> Vec<u32> {
    let weight = |page: u32| f64::from(page + 1).powf(-theta);
    let total: f64 = (0..pages).map(weight).sum();
    let steps = u32::try_from(ZIPF_STEPS).expect("a small constant");
    let mut table = Vec::new();
    let (mut page, mut below) = (0, 0.0);
    for step in 0..steps {
        let quantile = f64::from(step) / f64::from(steps) * total;
        while page + 1 < pages && below + weight(page) <= quantile {
            below += weight(page);
            page += 1;
        }
        table.push(page);
    }
    table.push(pages);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_gets_its_share_and_the_last_one_is_reached() {
        let table = quantiles(1000, 1.0);
        assert!(table.is_sorted());
        assert_eq!(table.last(), Some(&1000));
        // The harmonic number of 1000 is 7.485: page 0 has 13.4 % of all accesses.
        let first = table.iter().filter(|page| **page == 0).count() as f64 / ZIPF_STEPS as f64;
        assert!((first - 1.0 / 7.485).abs() < 0.001, "{first}");
    }
}
