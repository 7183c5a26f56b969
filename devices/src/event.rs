//! Event file descriptors as devices use them.
//!
//! Promises: signalling never blocks and never fails in a way that matters. Must never: be used for counts; an event only says "look".

use std::io;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A new event, not signalled, that neither blocks nor survives an exec.
pub fn new_event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// Signals `event`.
pub fn signal(event: &EventFd) {
    // The only possible failure is a counter at its maximum, and then the event is readable already.
    let _ = event.write(1);
}
