//! How accesses can be seen here, and what `--tracker auto` would take.

use memtier::status::{TrackerChoice, TrackerKind};
use memtier::track::choose::{self, Circumstances};
use memtier::track::page_idle::{self, PageIdleError};

use super::Row;
use crate::cli::chain;

/// `locked`: guest memory can be locked; `dirty_log`: KVM has a log of written pages.
pub(super) fn rows(locked: bool, dirty_log: bool) -> Vec<Row> {
    vec![page_idle(page_idle::usable()), auto(Circumstances { locked, dirty_log })]
}

/// The host kernel's own idle page tracking, tried on a page of our own.
fn page_idle(tried: Result<(), PageIdleError>) -> Row {
    const WHAT: &str = "page_idle tracker";
    let Err(error) = tried else { return Row::ok(WHAT, "works: a page of our own was marked, and seen when touched") };
    let mend = match &error {
        PageIdleError::Missing { .. } => "nothing to do: the unmap tracker works without it; another kernel has it",
        PageIdleError::Denied { .. } | PageIdleError::Hidden => {
            "nothing to do: the unmap tracker works without it; root can use it"
        }
        _ => "nothing to do: the unmap tracker works without it",
    };
    Row::warn(WHAT, chain(&error), mend)
}

fn auto(here: Circumstances) -> Row {
    const WHAT: &str = "tracker by auto";
    let offers = choose::offers(here);
    let choice = choose::choose(TrackerChoice::Auto, &offers, here);
    let detail = format!("{}: {}", choice.tracker.name(), choice.reason);
    let usable = offers.iter().any(|offer| offer.tracker == choice.tracker && offer.usable);
    match usable {
        false => Row::missing(WHAT, detail, "let this process read /proc/self/pagemap"),
        true if choice.tracker == TrackerKind::Unmap && !here.locked => Row::warn(WHAT, detail, "see memory locking"),
        true => Row::ok(WHAT, detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    #[test]
    fn no_idle_bitmap_is_a_warning_with_a_way_on() {
        let missing = PageIdleError::Missing { path: "/bitmap", option: "CONFIG_X" };
        let row = page_idle(Err(missing));
        assert_eq!(
            (row.state, row.detail.as_str()),
            (State::Warn, "/bitmap is missing: the host's kernel needs CONFIG_X")
        );
        assert!(row.mend.unwrap().contains("unmap"));
        assert!(page_idle(Err(PageIdleError::Hidden)).mend.unwrap().contains("root"));
        assert_eq!(page_idle(Ok(())).state, State::Ok);
    }

    #[test]
    fn auto_names_its_choice_and_its_reason() {
        let row = auto(Circumstances { locked: true, dirty_log: true });
        assert_eq!(row.state, State::Ok, "this host has page maps: {row:?}");
        assert!(row.detail.starts_with("unmap: ") && row.detail.len() > "unmap: ".len(), "{row:?}");
    }
}
