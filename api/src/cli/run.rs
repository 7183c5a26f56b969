//! `ebb run`: a guest from flags, a file or a client, until it ends.
//!
//! Promises: flags override the file; the socket is there before the guest runs and gone when the program ends in order. Must never: start
//! a guest that a signal has already called off.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use clap::Args;
use memtier::status::{AreaSpec, HugePages};
use vmm::ExitReason;

use super::chained;
use crate::config::bodies::BootSource;
use crate::config::draft::checked_cpus;
use crate::config::file::{self, FileError};
use crate::config::size::parse_size;
use crate::config::spec::{
    Console, Disk, Tracker, parse_console, parse_dirty_ring, parse_disk, parse_huge_pages, parse_swap,
};
use crate::config::{Draft, DraftError};
use crate::guest::Kvm;
use crate::instance::{Instance, InstanceError};
use crate::rest::{Server, ServerError};
use crate::sys::signals::{EndSignals, ignore_file_size_signal};

/// Flags of `ebb run`. With --kernel or --config the guest starts at once; with --api-sock alone ebb waits for a client.
#[derive(Args, Debug, Default)]
pub struct RunArgs {
    /// Kernel to boot: a bzImage, or an ELF file with a PVH note
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line, instead of the default one
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Number of vCPUs, 1 to 32 [default: 1]
    #[arg(long, value_name = "N", value_parser = chained(cpus))]
    cpus: Option<u8>,
    /// Guest memory; K, M and G are binary [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = chained(parse_size))]
    memory: Option<u64>,
    /// Raw image as a virtio disk, read-only with ",ro"; may be given more than once
    #[arg(long = "disk", value_name = "PATH[,ro]", value_parser = chained(parse_disk))]
    disks: Vec<Disk>,
    /// Swap area for cold memory, made when it is not there and a size is given; may be given more than once
    #[arg(long = "swap", value_name = "PATH[,size=SIZE][,priority=N]", value_parser = chained(parse_swap))]
    swap: Vec<AreaSpec>,
    /// How the guest's accesses are seen: the best way here, one by name, or "off" for no tiering at all [default: auto]
    #[arg(long, value_name = "auto|unmap|page_idle|dirty_log|off", value_parser = chained(str::parse::<Tracker>))]
    tracker: Option<Tracker>,
    /// Log the guest's writes in rings of so many entries, one for each vCPU, instead of a bitmap
    #[arg(long, value_name = "ENTRIES", value_parser = chained(parse_dirty_ring))]
    dirty_ring: Option<u32>,
    /// What backs guest memory: 4 KiB pages, transparent huge pages, or 2 MiB pages from hugetlbfs [default: off]
    #[arg(long = "hugepages", value_name = "off|thp|2M", value_parser = chained(parse_huge_pages))]
    huge_pages: Option<HugePages>,
    /// Serial console: this terminal, nowhere, or a file [default: stdio]
    #[arg(long, value_name = "stdio|off|FILE", value_parser = chained(parse_console))]
    console: Option<Console>,
    /// Unix socket for the REST API; made with mode 0600
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// JSON file with Firecracker's shape; flags override it, and --disk and --swap replace its whole list
    #[arg(long, value_name = "FILE.json")]
    config: Option<PathBuf>,
    /// Name of the instance: letters, digits and "-" [default: anonymous-instance]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Leave out the virtio random number device
    #[arg(long)]
    no_entropy: bool,
}

/// Why a run ended with anything but the guest's own power-off or reboot.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Neither a guest nor a way to get one.
    #[error("nothing to run: give --kernel, --config or --api-sock")]
    Nothing,
    /// A flag that only makes sense with another.
    #[error("{0} needs --kernel, or a boot-source in the --config file")]
    NeedsKernel(&'static str),
    /// The configuration file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The flags' values together.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// Building or starting.
    #[error(transparent)]
    Start(#[from] InstanceError),
    /// The API socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Signals could not be set up.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// A signal or a person ended it.
    #[error("stopped by {0}")]
    Stopped(&'static str),
    /// The guest or the machine gave up.
    #[error("{0}")]
    Ended(ExitReason),
}

/// Runs a guest to its end.
pub fn run(args: RunArgs) -> Result<(), RunError> {
    let start_at_once = args.kernel.is_some() || args.config.is_some();
    if !start_at_once && args.api_sock.is_none() {
        return Err(RunError::Nothing);
    }
    let api_sock = args.api_sock.clone();
    let draft = draft(args)?;
    if start_at_once {
        // Says what is missing before a socket or a thread is made for it.
        draft.machine_config()?;
    }
    ignore_file_size_signal().map_err(RunError::Signals)?;
    let signals = EndSignals::block().map_err(RunError::Signals)?;
    let instance = Arc::new(Instance::new(draft, Box::new(Kvm)));
    // The server's drop stops it and removes the socket, also when the start fails.
    let _server = api_sock.map(|path| Server::start(&path, Arc::clone(&instance))).transpose()?;
    let stopped_by = stop_on_signal(signals, Arc::clone(&instance))?;

    let guest = if start_at_once { Some(instance.start()?) } else { instance.wait_for_guest() };
    let reason = guest.map_or(ExitReason::Stopped, |guest| guest.wait());
    match reason {
        ExitReason::PowerOff | ExitReason::Reset => Ok(()),
        ExitReason::Stopped => {
            let signal = *stopped_by.lock().unwrap_or_else(PoisonError::into_inner);
            Err(RunError::Stopped(signal.unwrap_or("a person at the console")))
        }
        reason => Err(RunError::Ended(reason)),
    }
}

fn cpus(text: &str) -> Result<u8, DraftError> {
    let number = text.parse().map_err(|_| DraftError::NotCpus(text.to_owned()))?;
    checked_cpus(number)
}

/// The file's draft, or an empty one, with the flags over it.
fn draft(args: RunArgs) -> Result<Draft, RunError> {
    let mut draft = args.config.as_deref().map_or_else(|| Ok(Draft::default()), file::read)?;
    if let Some(id) = &args.id {
        draft.set_id(id)?;
    }
    set_boot(&mut draft, args.kernel, args.initrd, args.cmdline)?;
    draft.cpus = args.cpus.unwrap_or(draft.cpus);
    draft.memory = args.memory.unwrap_or(draft.memory);
    draft.console = args.console.unwrap_or(draft.console);
    draft.tracker = args.tracker.unwrap_or(draft.tracker);
    draft.dirty_ring = args.dirty_ring.or(draft.dirty_ring);
    draft.huge_pages = args.huge_pages.unwrap_or(draft.huge_pages);
    draft.entropy &= !args.no_entropy;
    if !args.disks.is_empty() {
        draft.set_disks(args.disks);
    }
    if !args.swap.is_empty() {
        draft.set_areas(args.swap)?;
    }
    Ok(draft)
}

fn set_boot(
    draft: &mut Draft,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
) -> Result<(), RunError> {
    if let Some(path) = kernel {
        let rest = BootSource { kernel_image_path: PathBuf::new(), initrd_path: None, boot_args: None };
        draft.boot = Some(BootSource { kernel_image_path: path, ..draft.boot.take().unwrap_or(rest) });
    }
    if let Some(path) = initrd {
        draft.boot.as_mut().ok_or(RunError::NeedsKernel("--initrd"))?.initrd_path = Some(path);
    }
    if let Some(text) = cmdline {
        draft.boot.as_mut().ok_or(RunError::NeedsKernel("--cmdline"))?.boot_args = Some(text);
    }
    Ok(())
}

/// The signal that has stopped the instance, once one has.
type StoppedBy = Arc<Mutex<Option<&'static str>>>;

fn stop_on_signal(signals: EndSignals, instance: Arc<Instance>) -> Result<StoppedBy, RunError> {
    let stopped_by = StoppedBy::default();
    let note = Arc::clone(&stopped_by);
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            let already = note.lock().unwrap_or_else(PoisonError::into_inner).replace(signal).is_some();
            if already {
                // The guest did not end after the first one; the next start copes with what is left behind.
                let _ = writeln!(io::stderr(), "ebb: {signal} again, gone at once");
                std::process::exit(1);
            }
            instance.stop();
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(RunError::Signals)?;
    Ok(stopped_by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn drafted(args: &[&str]) -> Draft {
        let line = Line::try_parse_from([&["run"], args].concat()).unwrap_or_else(|error| panic!("{error}"));
        draft(line.args).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn without_flags_the_defaults_hold() {
        let draft = drafted(&["--kernel", "k"]);
        let config = draft.machine_config().unwrap();
        assert_eq!((config.cpus, config.memory, config.entropy), (1, 256 << 20, true));
        assert_eq!(draft.console, Console::Stdio);
        let tiering = config.tiering.unwrap();
        assert_eq!((tiering.tracker, tiering.areas.len()), (memtier::status::TrackerChoice::Auto, 0));
    }

    #[test]
    fn a_whole_line_becomes_a_whole_draft() {
        let draft = drafted(&[
            "--kernel=k",
            "--initrd=i",
            "--cmdline=-- console=hvc0",
            "--cpus=4",
            "--memory=1G",
            "--disk=a",
            "--disk=b,ro",
            "--swap=s,size=2G,priority=1",
            "--swap=t",
            "--tracker=dirty_log",
            "--dirty-ring=4096",
            "--hugepages=2M",
            "--console=log",
            "--id=vm-1",
            "--no-entropy",
        ]);
        let mut expected = Draft::default();
        expected.set_id("vm-1").unwrap();
        expected.boot = Some(BootSource {
            kernel_image_path: "k".into(),
            initrd_path: Some("i".into()),
            boot_args: Some("-- console=hvc0".into()),
        });
        expected.cpus = 4;
        expected.memory = 1 << 30;
        expected.entropy = false;
        expected.tracker = "dirty_log".parse().unwrap();
        expected.dirty_ring = Some(4096);
        expected.huge_pages = HugePages::Hugetlb2M;
        expected.console = Console::File("log".into());
        let disk = |path: &str, read_only| Disk { path: path.into(), read_only };
        expected.set_disks(vec![disk("a", false), disk("b", true)]);
        let area = |path: &str, size, priority| AreaSpec { path: path.into(), size, priority, ..AreaSpec::default() };
        expected.set_areas(vec![area("s", Some(2 << 30), Some(1)), area("t", None, None)]).unwrap();
        assert_eq!(draft, expected);
    }

    #[test]
    fn flags_override_the_file_and_lists_replace_its_lists() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{
            "id": "from-file",
            "boot-source": {"kernel_image_path": "k", "initrd_path": "i", "boot_args": "quiet"},
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
            "drives": [{"drive_id": "d", "path_on_host": "d", "is_root_device": true, "is_read_only": true}],
            "entropy": {},
            "memtier": {"tracker": "unmap", "swap_areas": [{"path": "s", "size": 1048576}]},
            "console": "off"
        }"#;
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        let kept = drafted(&["--config", path]).machine_config().unwrap();
        assert_eq!((kept.cpus, kept.memory, kept.id.as_str()), (2, 64 << 20, "from-file"));
        assert_eq!(kept.boot.cmdline.as_deref(), Some("quiet root=/dev/vda ro"));
        assert_eq!((kept.disks.len(), kept.tiering.unwrap().areas.len()), (1, 1));

        let flags =
            ["--kernel", "other", "--cpus", "3", "--disk", "x", "--disk", "y", "--swap", "z", "--console", "stdio"];
        let draft = drafted(&[&["--config", path], &flags[..]].concat());
        let over = draft.machine_config().unwrap();
        assert_eq!((over.cpus, over.memory), (3, 64 << 20));
        assert_eq!(over.boot.kernel.to_str(), Some("other"));
        assert_eq!(over.boot.initrd.as_deref().and_then(|p| p.to_str()), Some("i"));
        assert_eq!(over.boot.cmdline.as_deref(), Some("quiet"), "the file's root drive is gone");
        assert_eq!(over.disks.iter().map(|d| d.path.to_str().unwrap()).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(over.tiering.unwrap().areas, [AreaSpec::new("z")]);
        assert_eq!(draft.console, Console::Stdio);
    }

    #[test]
    fn tiering_can_be_off_but_not_with_swap_areas() {
        assert!(drafted(&["--kernel", "k", "--tracker", "off"]).machine_config().unwrap().tiering.is_none());
        let refused = drafted(&["--kernel", "k", "--tracker", "off", "--swap", "s"]).machine_config();
        assert_eq!(refused.unwrap_err(), DraftError::SwapWithoutTracker);
    }
}
