//! Locks and atomics that are the standard library's in the product and loom's under `--cfg loom`, so that the model checker runs the real
//! slot caches, areas and slot maps.
//!
//! Promises: the same names and meanings either way. Must never: be used for anything that loom does not need to see; counters that only
//! people read are plain standard atomics.

#[cfg(not(loom))]
mod imp {
    pub use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, Ordering};
    pub use std::sync::{Mutex, MutexGuard};

    use arc_swap::{ArcSwapOption, Guard};
    use std::sync::Arc;

    /// What a reader found there.
    pub type Loaded<T> = Guard<Option<Arc<T>>>;

    /// A place that readers look at without a lock while a writer exchanges what is there.
    #[derive(Debug)]
    pub struct Published<T>(ArcSwapOption<T>);

    impl<T> Published<T> {
        pub fn empty() -> Self {
            Self(ArcSwapOption::empty())
        }

        /// What is there now; it stays valid while the answer lives. The first call of a thread sets up a record for that thread, later
        /// ones allocate nothing.
        pub fn load(&self) -> Loaded<T> {
            self.0.load()
        }

        pub fn store(&self, value: Option<Arc<T>>) {
            self.0.store(value);
        }
    }
}

#[cfg(loom)]
mod imp {
    pub use loom::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, Ordering};
    pub use loom::sync::{Mutex, MutexGuard};

    use std::sync::Arc;

    use super::lock;

    /// What a reader found there.
    pub type Loaded<T> = Box<Option<Arc<T>>>;

    /// As in the product, with a lock that the checker can see instead of arc-swap, whose own atomics it can't.
    #[derive(Debug)]
    pub struct Published<T>(Mutex<Option<Arc<T>>>);

    impl<T> Published<T> {
        pub fn empty() -> Self {
            Self(Mutex::new(None))
        }

        pub fn load(&self) -> Loaded<T> {
            Box::new(lock(&self.0).clone())
        }

        pub fn store(&self, value: Option<Arc<T>>) {
            *lock(&self.0) = value;
        }
    }
}

pub use imp::*;

/// Locks; a thread that panicked under the lock takes this one with it, since what the lock guards may be half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked while it held this lock")
}
