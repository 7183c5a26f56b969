//! Huge pages for guest memory: transparent ones, and the host's pool of 2 MiB pages.

use std::fs;
use std::path::Path;

use super::Row;
use super::access::read_word;
use crate::cli::chain;
use crate::config::size::show_size;
use crate::sys::collapse;

const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const POOL_PAGE: u64 = 2 << 20;

pub(super) fn rows() -> Vec<Row> {
    vec![transparent(), pool(Path::new(POOL))]
}

/// `--hugepages thp`: on request they are made even where the kernel makes none by itself.
fn transparent() -> Row {
    const WHAT: &str = "transparent huge pages";
    let word = fs::read_to_string(SHMEM).ok();
    let setting = match word.as_deref().and_then(chosen) {
        Some(word) => format!("shmem_enabled is {word}"),
        None => format!("{SHMEM} can't be read"),
    };
    match collapse::collapse_shared_memory() {
        Ok(()) => Row::ok(WHAT, format!("{setting}; putting pages together on request (MADV_COLLAPSE) works")),
        Err(error) => Row::warn(
            WHAT,
            format!("{setting}; MADV_COLLAPSE: {}", chain(&error)),
            "nothing to do without --hugepages thp; that needs a kernel with CONFIG_TRANSPARENT_HUGEPAGE, 6.1 or later",
        ),
    }
}

/// `--hugepages 2M`.
fn pool(directory: &Path) -> Row {
    const WHAT: &str = "2 MiB pages";
    let number = |name: &str| read_word(directory.join(name))?.parse::<u64>().ok();
    let (Some(all), Some(free)) = (number("nr_hugepages"), number("free_hugepages")) else {
        return Row::warn(
            WHAT,
            format!("{} can't be read", directory.display()),
            "nothing to do without --hugepages 2M; that needs a kernel with CONFIG_HUGETLBFS",
        );
    };
    let detail = format!("{free} of {all} free, for {} of guest memory", show_size(free.saturating_mul(POOL_PAGE)));
    if free > 0 {
        return Row::ok(WHAT, detail);
    }
    Row::warn(
        WHAT,
        detail,
        "nothing to do without --hugepages 2M; for that set vm.nr_hugepages to one for each 2 MiB of guest memory",
    )
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    #[test]
    fn the_chosen_word_is_the_one_in_brackets() {
        assert_eq!(chosen("always within_size [advise] never deny force\n"), Some("advise"));
        assert_eq!(chosen("always"), None);
        assert_eq!(chosen("[never"), None);
    }

    #[test]
    fn an_empty_pool_is_a_warning_and_one_with_pages_says_for_how_much() {
        let directory = tempfile::tempdir().unwrap();
        assert!(pool(directory.path()).detail.ends_with("can't be read"));
        let set = |all: &str, free: &str| {
            fs::write(directory.path().join("nr_hugepages"), all).unwrap();
            fs::write(directory.path().join("free_hugepages"), free).unwrap();
            pool(directory.path())
        };
        assert_eq!(set("0\n", "0\n").state, State::Warn);
        let row = set("64\n", "16\n");
        assert_eq!((row.state, row.detail.as_str()), (State::Ok, "16 of 64 free, for 32 MiB of guest memory"));
    }

    #[test]
    fn transparent_huge_pages_are_tried_not_read_about() {
        let row = transparent();
        assert!(row.detail.contains("MADV_COLLAPSE"), "{row:?}");
        assert_eq!(row.state == State::Ok, collapse::collapse_shared_memory().is_ok());
    }
}
