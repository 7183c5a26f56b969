//! Payload guests made by hand: a few instructions in an ELF file, and a device that hears what they say.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use devices::BusDevice;
use tempfile::NamedTempFile;
use vmm::{BootSource, ConsoleConfig, EntryMode, ExtraPio, MachineConfig};

/// Where payloads are loaded and entered.
pub const LOAD: u64 = 0x20_0000;
/// The port that [`Listener`] listens on.
pub const PORT: u16 = 0x500;

/// `mov dx, PORT`.
pub const MOV_DX_PORT: [u8; 4] = [0x66, 0xba, PORT.to_le_bytes()[0], PORT.to_le_bytes()[1]];
/// `out dx, eax`.
pub const OUT_EAX: u8 = 0xef;
/// `hlt; jmp` back to it.
pub const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// An ELF file with one segment of `code` at [`LOAD`], entered at its first byte.
pub fn image(code: &[u8]) -> NamedTempFile {
    let mut bytes = vec![0u8; 0x1000];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &LOAD.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    put(68, &7u32.to_le_bytes());
    let len = code.len() as u64;
    for (offset, value) in [(72, 0x1000), (80, LOAD), (88, LOAD), (96, len), (104, len)] {
        put(offset, &value.to_le_bytes());
    }
    bytes.extend_from_slice(code);
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(&bytes).expect("written");
    file
}

/// A machine for the payload in `kernel`.
pub fn config(kernel: &NamedTempFile, cpus: u8) -> MachineConfig {
    MachineConfig {
        huge_pages: memtier::status::HugePages::Off,
        id: "test".into(),
        cpus,
        memory: 16 << 20,
        boot: BootSource {
            kernel: kernel.path().to_path_buf(),
            initrd: None,
            cmdline: None,
            entry: EntryMode::EveryVcpu,
        },
        disks: Vec::new(),
        entropy: false,
        console: ConsoleConfig::Off,
        tiering: None,
    }
}

/// Counts what guests write to its port.
#[derive(Default)]
pub struct Listener {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Default)]
struct Heard {
    counts: HashMap<u32, u64>,
    writes: Vec<Vec<u8>>,
}

impl Listener {
    /// A listener and the device for it.
    pub fn new() -> (Arc<Self>, Vec<ExtraPio>) {
        let listener = Arc::new(Self::default());
        let device = Arc::new(Mutex::new(Ear(Arc::clone(&listener))));
        (listener, vec![ExtraPio { port: PORT, len: 8, device }])
    }

    /// How often each value was written.
    pub fn counts(&self) -> HashMap<u32, u64> {
        self.heard.lock().expect("no panic").counts.clone()
    }

    /// The first writes, as they came.
    pub fn writes(&self) -> Vec<Vec<u8>> {
        self.heard.lock().expect("no panic").writes.clone()
    }

    /// Waits until `done` says so of the counts. Panics after a time in which any guest would have.
    pub fn wait(&self, done: impl Fn(&HashMap<u32, u64>) -> bool) {
        let heard = self.heard.lock().expect("no panic");
        let waiting = |heard: &mut Heard| !done(&heard.counts);
        let (heard, result) =
            self.changed.wait_timeout_while(heard, Duration::from_secs(60), waiting).expect("no panic");
        assert!(!result.timed_out(), "heard only {:?}", heard.counts);
    }
}

struct Ear(Arc<Listener>);

impl BusDevice for Ear {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let mut heard = self.0.heard.lock().expect("no panic");
        if heard.writes.len() < 64 {
            heard.writes.push(data.to_vec());
        }
        let mut value = [0; 4];
        value[..data.len()].copy_from_slice(data);
        *heard.counts.entry(u32::from_le_bytes(value)).or_default() += 1;
        self.0.changed.notify_all();
    }
}
