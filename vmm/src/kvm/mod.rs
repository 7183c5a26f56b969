//! KVM as this machine uses it: opening it, checking it, one virtual machine with interrupt controllers and memory slots, and the log of
//! pages written.
//!
//! Promises: what is missing on a host is named. Must never: know devices or the boot protocol.

pub mod capability;
pub mod dirty;
mod mce;
mod vm;

use std::io;

use kvm_ioctls::Kvm;

pub use mce::{MachineCheck, MachineCheckSupport, Restart};
pub use vm::Vm;

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";
/// The only stable version of its interface.
const API_VERSION: i32 = 12;

/// Why KVM does not do what is needed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// Not opened.
    #[error("cannot open {DEVICE}{}", hint(.source))]
    Open {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another interface.
    #[error("{DEVICE} has API version {found}, {API_VERSION} is needed")]
    ApiVersion {
        /// Its version.
        found: i32,
    },
    /// A capability is missing.
    #[error("this host's KVM lacks {name}, which is needed for {purpose}")]
    Missing {
        /// The capability's name in KVM's interface.
        name: &'static str,
        /// What it is for.
        purpose: &'static str,
    },
    /// More vCPUs than KVM has.
    #[error("{cpus} vCPUs asked for, this host's KVM has {limit}")]
    Cpus {
        /// What was asked for.
        cpus: u8,
        /// What there is.
        limit: usize,
    },
    /// Larger dirty rings than KVM has.
    #[error("a dirty ring of {entries} entries asked for, this host's KVM has at most {limit}")]
    DirtyRing {
        /// What was asked for.
        entries: u32,
        /// What there is.
        limit: u64,
    },
    /// A call failed.
    #[error("KVM call {call} failed")]
    Call {
        /// Which.
        call: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl KvmError {
    /// For `map_err` on a KVM call.
    pub fn call(call: &'static str) -> impl Fn(vmm_sys_util::errno::Error) -> Self {
        move |error| Self::Call { call, source: error.into() }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": the host's kernel has no KVM, or its module is not loaded",
        io::ErrorKind::PermissionDenied => ": this user may not; on most hosts the group kvm may",
        _ => "",
    }
}

/// Opens KVM and checks its version.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| KvmError::Open { source: error.into() })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        found => Err(KvmError::ApiVersion { found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let told = |errno| KvmError::Open { source: io::Error::from_raw_os_error(errno) }.to_string();
        assert_eq!(
            told(libc::ENOENT),
            "cannot open /dev/kvm: the host's kernel has no KVM, or its module is not loaded"
        );
        assert_eq!(told(libc::EACCES), "cannot open /dev/kvm: this user may not; on most hosts the group kvm may");
        assert_eq!(told(libc::EIO), "cannot open /dev/kvm");
    }
}
