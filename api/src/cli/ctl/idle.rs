//! `ebb ctl idle`: the idle bitmap counted, or some of its words.

use hyper::Method;
use memtier::status::Status;
use serde_json::json;

use super::args::IdleArgs;
use super::{Session, show};
use crate::cli::{CliError, print};
use crate::client::Body;

pub(super) fn idle(session: &Session, args: &IdleArgs) -> Result<(), CliError> {
    if args.offset.is_none() && args.len.is_none() {
        return summary(session);
    }
    let offset = args.offset.unwrap_or(0);
    let mut target = format!("/memtier/idle_bitmap?offset={offset}");
    if let Some(len) = args.len {
        target.push_str(&format!("&len={len}"));
    }
    let bits = session.send(Method::GET, &target, Body::Empty)?;
    if session.json {
        let words: Vec<String> = words(&bits).map(|word| format!("{word:#018x}")).collect();
        return print(&format!("{}\n", json!({ "offset": offset, "len": bits.len(), "words": words })));
    }
    print(&show::idle_words(offset, words(&bits)))
}

fn summary(session: &Session) -> Result<(), CliError> {
    let status: Status = session.get_as("/memtier")?;
    let mut idle = 0;
    let mut offset = 0;
    // The server may answer with fewer bytes than there are; at the end it answers with none.
    loop {
        let bits = session.get(&format!("/memtier/idle_bitmap?offset={offset}"))?;
        if bits.is_empty() {
            break;
        }
        idle += words(&bits).map(|word| u64::from(word.count_ones())).sum::<u64>();
        offset += bits.len();
    }
    if session.json {
        let counts = json!({
            "idle_pages": idle,
            "resident_pages": status.resident_pages,
            "guest_pages": status.guest_pages,
            "page_size": status.page_size,
        });
        return print(&format!("{counts}\n"));
    }
    print(&show::idle_summary(idle, &status))
}

/// The bitmap's 64-bit words, in the byte order of the machine that both ends run on.
fn words(bits: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = bits.as_chunks::<8>();
    words.iter().map(|word| u64::from_ne_bytes(*word))
}
