//! Touches exactly the pages of a bitmap.
//!
//! Promises: of workload memory, only pages whose bit is set are accessed, each once. Must never: read a page that it is to write.

use crate::abi::PAGE;
use crate::mailbox::{Args, Mailbox};
use crate::memory;

/// See [`crate::abi::command::TOUCH`].
pub fn touch(mailbox: &Mailbox, args: &Args) {
    let &[bitmap, start, pages, write, value, ..] = args;
    let (mut touched, mut seen) = (0, 0);
    for word in 0..pages.div_ceil(64) {
        let mut bits = memory::read(bitmap + word * 8);
        while bits != 0 {
            let page = word * 64 + u64::from(bits.trailing_zeros());
            bits &= bits - 1;
            if page >= pages {
                break;
            }
            // Not always the first word: any byte of a page must count.
            let address = start + page * PAGE + page * 40 % PAGE;
            if write != 0 {
                memory::write(address, value);
            } else {
                seen ^= memory::read(address);
            }
            touched += 1;
        }
    }
    mailbox.results(&[touched, seen]);
}
