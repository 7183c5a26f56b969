//! For work that must not stop half-way.

/// Ends the process if it is dropped by a panic. A frame left in transition would let the guest sleep for ever, or go on with other bytes;
/// a process that is gone does neither.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
