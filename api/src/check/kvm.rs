//! KVM: whether it is there, whether it suffices, and how it runs a guest's kernel.

use std::io;

use vmm::host_check::{KernelMode, KvmError, KvmProbe, ProbeError, kvm_probe};

use super::Row;
use crate::cli::chain;
use crate::config::size::show_size;

/// The rows, and whether KVM has a log of written pages.
pub(super) fn rows() -> (Vec<Row>, bool) {
    match kvm_probe() {
        Ok(probe) => {
            let rows =
                vec![suffices(&probe), kernel_mode(&probe.kernel_mode), dirty_log(&probe), machine_checks(&probe)];
            (rows, has_dirty_log(&probe))
        }
        Err(error) => (vec![unusable(&error)], false),
    }
}

const KVM: &str = "KVM";

fn unusable(error: &KvmError) -> Row {
    let mend = match error {
        KvmError::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "add this user to the group that /dev/kvm belongs to (often kvm), or give it read and write access"
        }
        KvmError::Open { .. } => {
            "load kvm_intel or kvm_amd, switch virtualization on in the firmware, or nested virtualization on in the host around this one"
        }
        _ => "run a kernel with a newer KVM",
    };
    Row::missing(KVM, chain(error), mend)
}

fn suffices(probe: &KvmProbe) -> Row {
    let missing: Vec<&str> = probe.missing().map(|capability| capability.name).collect();
    if missing.is_empty() {
        let detail =
            format!("API version {}, up to {} vCPUs, all needed capabilities", probe.api_version, probe.max_vcpus);
        return Row::ok(KVM, detail);
    }
    Row::missing(KVM, format!("{} not there", missing.join(", ")), "run a kernel with a newer KVM")
}

fn kernel_mode(mode: &Result<KernelMode, ProbeError>) -> Row {
    const WHAT: &str = "KVM kernel mode";
    match mode {
        Ok(mode) if mode.is_emulated() => Row::warn(
            WHAT,
            format!(
                "emulated, {:.0} ns an instruction: ordinary Linux kernels do not boot, payload guests run",
                mode.instruction_ns
            ),
            "use a host with VT-x or AMD-V, or nested virtualization, for Linux guests",
        ),
        Ok(mode) => Row::ok(WHAT, format!("native, {:.1} ns an instruction", mode.instruction_ns)),
        Err(error) => Row::warn(WHAT, format!("could not be measured: {}", chain(error)), "look at the kernel's log"),
    }
}

fn has_dirty_log(probe: &KvmProbe) -> bool {
    probe.dirty_log_manual || probe.dirty_ring_bytes.is_some()
}

/// What the `dirty_log` tracker needs: one of the two.
fn dirty_log(probe: &KvmProbe) -> Row {
    const WHAT: &str = "dirty_log tracker";
    let ring = probe.dirty_ring_bytes.map(|bytes| format!("rings of up to {} a vCPU", show_size(bytes.into())));
    let bitmap = "bitmap, cleared piece by piece";
    match (probe.dirty_log_manual, ring) {
        (true, Some(ring)) => Row::ok(WHAT, format!("works: by {bitmap}, or by {ring}")),
        (true, None) => Row::ok(WHAT, format!("works: by {bitmap}; no dirty ring")),
        (false, Some(ring)) => Row::warn(
            WHAT,
            format!("only by {ring}"),
            "use --dirty-ring, or a kernel with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (5.7 or later)",
        ),
        (false, None) => Row::warn(
            WHAT,
            "neither a dirty bitmap that is cleared piece by piece nor dirty rings",
            "nothing to do: the unmap tracker works without it; Linux 5.7 or later has it",
        ),
    }
}

fn machine_checks(probe: &KvmProbe) -> Row {
    const WHAT: &str = "KVM machine checks";
    if probe.machine_checks {
        return Row::ok(WHAT, "a guest can be told of a lost page");
    }
    Row::warn(WHAT, "not there: a guest that touches a lost page is ended", "run a kernel with a newer KVM")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use vmm::host_check::CapabilityProbe;

    fn probe() -> KvmProbe {
        let capability = |name, present| CapabilityProbe { name, purpose: "tests", present };
        KvmProbe {
            api_version: 12,
            capabilities: vec![capability("KVM_CAP_A", true), capability("KVM_CAP_B", true)],
            max_vcpus: 64,
            dirty_ring_bytes: Some(65536),
            dirty_log_manual: true,
            machine_checks: true,
            kernel_mode: Ok(KernelMode { instruction_ns: 0.25 }),
        }
    }

    #[test]
    fn a_missing_capability_is_named_and_is_missing() {
        assert_eq!(suffices(&probe()).state, State::Ok);
        let mut lacking = probe();
        lacking.capabilities[1].present = false;
        let row = suffices(&lacking);
        assert_eq!((row.state, row.detail.as_str()), (State::Missing, "KVM_CAP_B not there"));
    }

    #[test]
    fn emulated_kernel_mode_is_a_warning_since_payload_guests_run() {
        assert_eq!(
            kernel_mode(&Ok(KernelMode { instruction_ns: 0.25 })),
            Row::ok("KVM kernel mode", "native, 0.2 ns an instruction")
        );
        let row = kernel_mode(&Ok(KernelMode { instruction_ns: 800.0 }));
        assert_eq!(row.state, State::Warn);
        assert!(row.detail.starts_with("emulated, 800 ns"));
    }

    #[test]
    fn the_dirty_log_needs_a_bitmap_or_rings() {
        let row = |manual, ring| dirty_log(&KvmProbe { dirty_log_manual: manual, dirty_ring_bytes: ring, ..probe() });
        let both = row(true, Some(65536));
        assert_eq!(both.detail, "works: by bitmap, cleared piece by piece, or by rings of up to 64 KiB a vCPU");
        assert_eq!((both.state, row(true, None).state), (State::Ok, State::Ok));
        assert!(row(false, Some(65536)).mend.unwrap().contains("--dirty-ring"));
        assert_eq!(row(false, None).state, State::Warn);
        assert!(!has_dirty_log(&KvmProbe { dirty_log_manual: false, dirty_ring_bytes: None, ..probe() }));
    }

    #[test]
    fn no_permission_and_no_device_have_their_own_mends() {
        let open = |kind: io::ErrorKind| unusable(&KvmError::Open { source: kind.into() });
        assert!(open(io::ErrorKind::PermissionDenied).mend.unwrap().starts_with("add this user"));
        assert!(open(io::ErrorKind::NotFound).mend.unwrap().starts_with("load kvm_intel"));
        assert_eq!(open(io::ErrorKind::NotFound).state, State::Missing);
    }
}
