//! A guest without a processor: real guest memory (memfds, mapped), real tiers with real userfaultfd, and this test as its vCPU.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Condvar, Mutex};

use api::client::{Body, Client};
use api::config::Draft;
use api::guest::{Guest, GuestError, GuestState, Launch};
use api::instance::Instance;
use api::rest::Server;
use hyper::{Method, StatusCode};
use memtier::status::{HugePages, TrackerChoice};
use memtier::units::{Gfn, Hva, PAGE_SIZE};
use memtier::{Memtier, MemtierConfig, RegionSpec};
use serde_json::Value;
use tempfile::TempDir;
use vmm::ExitReason;
use vmm::config::MachineConfig;

/// The guest's memory: 2 MiB at 0, a hole, 1 MiB at 4 MiB.
pub const REGIONS: [(u64, usize); 2] = [(0, 512), (1024, 256)];
/// Its pages in all.
pub const PAGES: u64 = 768;

/// One region, mapped as the guest would have it.
struct Region {
    first: u64,
    pages: usize,
    file: File,
    map: *mut u8,
}

// SAFETY: the mapping belongs to the region alone and is only accessed with volatile operations.
unsafe impl Send for Region {}
// SAFETY: as above; racing volatile byte accesses are what guest memory is about.
unsafe impl Sync for Region {}

impl Region {
    fn new(first: u64, pages: usize) -> Self {
        let bytes = pages * PAGE_SIZE;
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd: {}", std::io::Error::last_os_error());
        // SAFETY: just made, known to nobody else.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(bytes as u64).unwrap();
        // SAFETY: a new mapping at a place of the kernel's choice.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(map, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { first, pages, file, map: map.cast() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; nothing uses it any more.
        unsafe { libc::munmap(self.map.cast(), self.pages * PAGE_SIZE) };
    }
}

/// The guest.
pub struct TestGuest {
    state: Mutex<GuestState>,
    changed: Condvar,
    regions: Vec<Region>,
    memtier: Option<Arc<Memtier>>,
}

impl TestGuest {
    fn new(config: &MachineConfig) -> Self {
        let regions: Vec<_> = REGIONS.iter().map(|(first, pages)| Region::new(*first, *pages)).collect();
        let memtier = config.tiering.as_ref().map(|tiering| {
            let spec = |region: &Region| RegionSpec {
                first: Gfn(region.first),
                pages: region.pages as u64,
                file: region.file.try_clone().unwrap().into(),
                guest_map: Hva(region.map as u64),
            };
            let regions = regions.iter().map(spec).collect();
            let config = MemtierConfig { regions, vcpus: 1, tracker: TrackerChoice::Unmap, huge_pages: HugePages::Off };
            let memtier = Memtier::new(config).unwrap();
            for area in &tiering.areas {
                memtier.swapon(area).unwrap();
            }
            memtier
        });
        Self { state: Mutex::new(GuestState::Running), changed: Condvar::new(), regions, memtier }
    }

    fn place(&self, gpa: u64) -> *mut u8 {
        let gfn = gpa / PAGE_SIZE as u64;
        let region = self.regions.iter().find(|r| (r.first..r.first + r.pages as u64).contains(&gfn)).unwrap();
        let offset = usize::try_from(gpa - region.first * PAGE_SIZE as u64).unwrap();
        // SAFETY: the offset is inside the region's mapping.
        unsafe { region.map.add(offset) }
    }

    /// Where a guest physical address is in this process.
    pub fn host_address(&self, gpa: u64) -> u64 {
        self.place(gpa) as u64
    }

    /// Writes a byte as a vCPU would.
    pub fn write(&self, gpa: u64, byte: u8) {
        // SAFETY: inside the mapping; a fault is served by the tiers' handlers on other threads.
        unsafe { self.place(gpa).write_volatile(byte) }
    }

    /// Reads a byte as a vCPU would.
    pub fn read(&self, gpa: u64) -> u8 {
        // SAFETY: as for `write`.
        unsafe { self.place(gpa).read_volatile() }
    }

    /// Touches every page, with its number in its first byte and another in its last.
    pub fn fill(&self) {
        for gpa in page_addresses() {
            self.write(gpa, mark(gpa));
            self.write(gpa + PAGE_SIZE as u64 - 1, !mark(gpa));
        }
    }

    /// Whether every page still has what [`TestGuest::fill`] wrote.
    pub fn verify(&self) {
        for gpa in page_addresses() {
            assert_eq!(self.read(gpa), mark(gpa), "{gpa:#x}");
            assert_eq!(self.read(gpa + PAGE_SIZE as u64 - 1), !mark(gpa), "{gpa:#x}");
        }
    }

    /// Bytes of host memory that the guest's memory holds, by the kernel's count.
    pub fn host_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.regions.iter().map(|r| r.file.metadata().unwrap().blocks() * 512).sum()
    }
}

fn mark(gpa: u64) -> u8 {
    u8::try_from(gpa / PAGE_SIZE as u64 % 251 + 1).unwrap()
}

/// Guest physical addresses of all pages.
pub fn page_addresses() -> impl Iterator<Item = u64> {
    let of = |(first, pages): (u64, usize)| (first..first + pages as u64).map(|gfn| gfn * PAGE_SIZE as u64);
    REGIONS.into_iter().flat_map(of)
}

impl Guest for TestGuest {
    fn state(&self) -> GuestState {
        *self.state.lock().unwrap()
    }

    fn pause(&self) -> Result<(), GuestError> {
        *self.state.lock().unwrap() = GuestState::Paused;
        Ok(())
    }

    fn resume(&self) -> Result<(), GuestError> {
        *self.state.lock().unwrap() = GuestState::Running;
        Ok(())
    }

    fn send_ctrl_alt_del(&self) -> Result<(), GuestError> {
        self.stop();
        Ok(())
    }

    fn memtier(&self) -> Option<Arc<Memtier>> {
        self.memtier.clone()
    }

    fn stop(&self) {
        *self.state.lock().unwrap() = GuestState::Exited;
        self.changed.notify_all();
    }

    fn wait(&self) -> ExitReason {
        let state = self.state.lock().unwrap();
        let _state = self.changed.wait_while(state, |state| *state != GuestState::Exited).unwrap();
        ExitReason::Stopped
    }
}

impl Drop for TestGuest {
    fn drop(&mut self) {
        if let Some(memtier) = &self.memtier {
            memtier.shutdown();
        }
    }
}

/// What a launch was asked for, and the guest that it made.
type Launched = Arc<Mutex<Vec<(MachineConfig, Arc<TestGuest>)>>>;

/// Called before each launch.
pub type BeforeLaunch = Box<dyn Fn(&MachineConfig) -> Result<(), GuestError> + Send + Sync>;

struct TestLauncher {
    launched: Launched,
    before: BeforeLaunch,
}

impl Launch for TestLauncher {
    fn launch(&self, config: MachineConfig) -> Result<Arc<dyn Guest>, GuestError> {
        (self.before)(&config)?;
        let guest = Arc::new(TestGuest::new(&config));
        self.launched.lock().unwrap().push((config, Arc::clone(&guest)));
        Ok(guest)
    }
}

/// A server on a socket in a directory of its own, and a client of it.
pub struct Site {
    pub client: Client,
    launched: Launched,
    server: Option<Server>,
    directory: TempDir,
}

impl Site {
    /// An instance of which nothing is known yet.
    pub fn waiting() -> Self {
        Self::with_launch(Box::new(|_| Ok(())))
    }

    /// The same, with something that happens before each launch.
    pub fn with_launch(before: BeforeLaunch) -> Self {
        Self::with(Draft::default(), before)
    }

    /// A running guest without tiering.
    pub fn untiered() -> Self {
        let mut draft = Draft::default();
        draft.tracker = "off".parse().unwrap();
        let site = Self::with(draft, Box::new(|_| Ok(())));
        site.expect(204, "PUT", "/boot-source", r#"{"kernel_image_path": "kernel"}"#);
        site
    }

    fn with(draft: Draft, before: BeforeLaunch) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let launched = Launched::default();
        let launcher = TestLauncher { launched: Arc::clone(&launched), before };
        let instance = Arc::new(Instance::new(draft, Box::new(launcher)));
        let socket = directory.path().join("api.sock");
        let server = Some(Server::start(&socket, instance).unwrap());
        Self { client: Client::new(&socket).unwrap(), launched, server, directory }
    }

    /// A running guest with tiering and no swap area.
    pub fn running() -> Self {
        let site = Self::waiting();
        site.expect(204, "PUT", "/boot-source", r#"{"kernel_image_path": "kernel"}"#);
        site.expect(204, "PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
        site
    }

    /// A running guest with all its memory touched, and a swap area with room for it.
    pub fn filled() -> Self {
        let site = Self::running();
        site.guest().fill();
        let area = serde_json::json!({ "path": site.path("swap"), "size": 8 << 20 });
        site.expect(201, "PUT", "/memtier/swap_areas", &area.to_string());
        site
    }

    /// A path in the site's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    /// The guest.
    pub fn guest(&self) -> Arc<TestGuest> {
        Arc::clone(&self.launched.lock().unwrap().last().expect("a guest was launched").1)
    }

    /// What the guest was made from.
    pub fn machine(&self) -> MachineConfig {
        self.launched.lock().unwrap().last().expect("a guest was launched").0.clone()
    }

    /// Ends the server.
    pub fn end(&mut self) {
        self.server = None;
    }

    /// Sends a JSON body, or none when it is empty.
    pub fn send(&self, method: &str, target: &str, json: &str) -> (u16, Vec<u8>) {
        let body = if json.is_empty() { Body::Empty } else { Body::Json(json.to_owned()) };
        self.send_body(method, target, body)
    }

    /// Sends a body.
    pub fn send_body(&self, method: &str, target: &str, body: Body) -> (u16, Vec<u8>) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let (status, bytes): (StatusCode, _) = self.client.exchange(method, target, body).unwrap();
        (status.as_u16(), bytes.to_vec())
    }

    /// Sends a JSON body and wants this status; gives the JSON of the answer, null when there is none.
    #[track_caller]
    pub fn expect(&self, status: u16, method: &str, target: &str, json: &str) -> Value {
        check(status, &format!("{method} {target} {json}"), self.send(method, target, json))
    }

    /// Sends a body and wants this status.
    #[track_caller]
    pub fn expect_body(&self, status: u16, method: &str, target: &str, body: Body) -> Value {
        check(status, &format!("{method} {target}"), self.send_body(method, target, body))
    }

    /// Wants a refusal with this status; gives its `fault_message`.
    #[track_caller]
    pub fn refused(&self, status: u16, method: &str, target: &str, json: &str) -> String {
        fault(&self.expect(status, method, target, json))
    }

    /// Sends raw bytes over a connection of their own and gives all that comes back until the server hangs up.
    pub fn raw(&self, request: &[u8]) -> String {
        self.converse(request, false)
    }

    /// The same, and says that nothing more will come.
    pub fn raw_and_no_more(&self, request: &[u8]) -> String {
        self.converse(request, true)
    }

    fn converse(&self, request: &[u8], no_more: bool) -> String {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        // The server may have answered and hung up before all is written.
        let _ = stream.write_all(request);
        if no_more {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[track_caller]
fn check(status: u16, what: &str, (found, bytes): (u16, Vec<u8>)) -> Value {
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(found, status, "{what}: {text}");
    let answer = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or(Value::Null) };
    if found >= 400 {
        assert!(!fault(&answer).is_empty(), "{what}: {text}");
    }
    answer
}

/// The message of a refusal, which has nothing else.
#[track_caller]
pub fn fault(answer: &Value) -> String {
    let object = answer.as_object().expect("an object");
    assert_eq!(object.len(), 1, "{answer}");
    object["fault_message"].as_str().expect("a fault_message").to_owned()
}

/// Guests of a few instructions: an ELF image that writes "hi" to the serial port and then does `rest`.
pub fn payload(rest: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x10_1000;
    const OFFSET: usize = 0x1000;
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in *b"hi\n" {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend(rest);
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    image.resize(16, 0);
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    for word in [BASE, 64, 0] {
        image.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]); // one program header
    image.extend([1, 0, 0, 0, 7, 0, 0, 0]); // load, read-write-execute
    let len = code.len() as u64;
    for word in [OFFSET as u64, BASE, BASE, len, len, OFFSET as u64] {
        image.extend(word.to_le_bytes());
    }
    image.resize(OFFSET, 0);
    image.extend(code);
    image
}

/// Asks for a reset through the keyboard controller, then halts.
pub const RESET: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
/// Goes round for ever.
pub const SPIN: [u8; 2] = [0xeb, 0xfe];
/// An undefined instruction, with nobody to handle it.
pub const CRASH: [u8; 2] = [0x0f, 0x0b];

/// The program.
pub fn ebb() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ebb"))
}

/// Runs `ebb ctl` on a socket.
pub fn ctl(socket: &Path, args: &[&str]) -> Output {
    ebb().args(["ctl", "--sock"]).arg(socket).args(args).output().unwrap()
}

/// What a program that failed as it should has said.
#[track_caller]
pub fn error_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].strip_prefix("ebb: ").expect("the program's name first").to_owned()
}
