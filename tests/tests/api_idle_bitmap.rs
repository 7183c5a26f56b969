//! page_idle's contract (`mm/page_idle.c`, `Documentation/admin-guide/mm/idle_page_tracking.rst`) over REST, against a running guest with a
//! hole in its memory. Each row of a table is one thing that the kernel's bitmap does, and what ebb's does in its place.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use api::client::{Body, Client};
use api::config::Draft;
use api::guest::{Guest, GuestError, Launch};
use api::instance::Instance;
use api::rest::Server;
use ebb_tests::huge_pool::Pool;
use ebb_tests::payload::abi::{PAGE, SCRATCH_BASE, WORK_BASE};
use ebb_tests::payload::pattern::kind;
use ebb_tests::payload::{Pages, PayloadPlan, TieredVm, Touch};
use hyper::Method;
use memtier::status::{AreaSpec, HugePages};
use serde_json::{Value, json};
use tempfile::TempDir;
use vmm::config::MachineConfig;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// More than fits below the 32-bit hole: memory goes on at 4 GiB.
const MEMORY: u64 = 3 * GIB + 4 * MIB;
/// The hole's frames, none of which is memory.
const HOLE: Range<u64> = 3 * GIB / PAGE..4 * GIB / PAGE;
/// One past the last frame.
const END: u64 = HOLE.end + 4 * MIB / PAGE;
/// Bytes in the bitmap.
const LEN: u64 = END / 8;

/// The first frame of workload memory, a multiple of 64; frames from here on are named relative to it.
const WORK: u64 = WORK_BASE / PAGE;
/// Frames in a huge page.
const HUGE: u64 = 512;
/// Frames there that have been written, as many below the end of low memory, and as many from 4 GiB on.
const FILLED: u64 = 256;
/// Where the filled frames are.
const LOW: Range<u64> = WORK..WORK + FILLED;
const BEFORE_HOLE: Range<u64> = HOLE.start - FILLED..HOLE.start;
const HIGH: Range<u64> = HOLE.end..HOLE.end + FILLED;

/// Launches a payload guest, whatever was described, and keeps it where the test finds it.
struct Launcher {
    start: fn() -> TieredVm,
    started: Arc<Mutex<Option<TieredVm>>>,
}

impl Launch for Launcher {
    fn launch(&self, _: MachineConfig) -> Result<Arc<dyn Guest>, GuestError> {
        let vm = (self.start)();
        let machine = Arc::clone(vm.machine());
        *self.started.lock().expect("nobody panicked") = Some(vm);
        Ok(machine)
    }
}

/// A running guest behind a socket.
struct Site {
    client: Client,
    vm: TieredVm,
    // Dropped in this order: the server goes before the socket's folder.
    _server: Server,
    _folder: TempDir,
}

impl Site {
    /// With the filled frames filled, and nothing else of workload memory touched.
    fn new() -> Self {
        Self::of(|| TieredVm::start(1, MEMORY, Some(16 * MIB)), &[LOW, BEFORE_HOLE, HIGH])
    }

    /// With huge pages of 2 MiB, four of them filled.
    fn with_huge_pages() -> Self {
        let start = || {
            let folder = tempfile::tempdir().expect("a folder");
            let area = AreaSpec { path: folder.path().join("swap"), size: Some(32 * MIB), ..AreaSpec::default() };
            let plan = PayloadPlan::with_areas(1, WORK_BASE + 5 * HUGE * PAGE, vec![area]);
            TieredVm::of(&PayloadPlan { huge_pages: HugePages::Hugetlb2M, ..plan })
        };
        Self::of(start, std::slice::from_ref(&(WORK..WORK + 4 * HUGE)))
    }

    fn of(start: fn() -> TieredVm, filled: &[Range<u64>]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("api.sock");
        let launched = Arc::new(Mutex::new(None));
        let instance =
            Arc::new(Instance::new(Draft::default(), Box::new(Launcher { start, started: Arc::clone(&launched) })));
        let server = Server::start(&socket, instance).expect("a server");
        let client = Client::new(&socket).expect("a client");
        let json = |value: Value| Body::Json(value.to_string());
        let image = json(json!({ "kernel_image_path": "the launcher has its own" }));
        client.request(Method::PUT, "/boot-source", image).expect("described");
        let action = json(json!({ "action_type": "InstanceStart" }));
        client.request(Method::PUT, "/actions", action).expect("started");
        let vm = launched.lock().expect("nobody panicked").take().expect("launched");
        for frames in filled {
            let count = frames.end - frames.start;
            let pages = Pages { seed: 1, start: frames.start * PAGE, pages: count, kinds: kind::RANDOM };
            vm.vcpu(0).fill(pages).expect("filled");
        }
        Self { client, vm, _server: server, _folder: folder }
    }

    fn send(&self, method: Method, target: &str, body: Body) -> (u16, Vec<u8>) {
        let (status, bytes) = self.client.exchange(method, target, body).expect("an answer");
        (status.as_u16(), bytes.to_vec())
    }

    fn get(&self, query: &str) -> (u16, Vec<u8>) {
        self.send(Method::GET, &format!("/memtier/idle_bitmap{query}"), Body::Empty)
    }

    fn put(&self, query: &str, bits: Vec<u8>) -> (u16, Value) {
        let (status, answer) = self.send(Method::PUT, &format!("/memtier/idle_bitmap{query}"), Body::Binary(bits));
        (status, serde_json::from_slice(&answer).expect("JSON"))
    }

    /// A request about frames that must succeed.
    fn about(&self, method: Method, target: &str, frames: &Range<u64>) -> Value {
        let range = json!({ "start": frames.start * PAGE, "len": (frames.end - frames.start) * PAGE });
        let body = Body::Json(json!({ "ranges": [range] }).to_string());
        let (status, answer) = self.send(method, target, body);
        assert!((200..300).contains(&status), "{target}: {status} {}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap_or(Value::Null)
    }

    /// Lets the guest touch one frame.
    fn touch(&self, frame: u64, write: Option<u64>) {
        self.vm.words().write(SCRATCH_BASE, 1).expect("guest memory");
        let touch = Touch { bitmap: SCRATCH_BASE, start: frame * PAGE, pages: 1, write };
        assert_eq!(self.vm.vcpu(0).touch(touch).expect("touched"), 1);
    }

    fn step(&self, step: &Step) {
        match step {
            Step::Mark(frames) => self.write_bits(frames, |frame| frames.contains(&frame)),
            Step::MarkOnly(frames, marked) => self.write_bits(frames, |frame| marked.contains(&frame)),
            Step::Read(frame) => self.touch(*frame, None),
            Step::Write(frame) => self.touch(*frame, Some(9)),
            Step::Evict(frames) => {
                let outcomes = self.about(Method::POST, "/memtier/swap_pages", frames);
                // Counted in pages as the guest has them.
                let count = (frames.end - frames.start) * PAGE / self.vm.status().page_size;
                assert_eq!(outcomes["evicted"].as_u64(), Some(count), "{outcomes}");
            }
            Step::Lock(frames) => drop(self.about(Method::POST, "/memtier/locks", frames)),
            Step::Unlock(frames) => drop(self.about(Method::DELETE, "/memtier/locks", frames)),
            Step::Settle(frames) => {
                // Locking waits for whoever is at a frame.
                self.step(&Step::Lock(frames.clone()));
                self.step(&Step::Unlock(frames.clone()));
            }
            Step::Look => drop(self.get("")),
        }
    }

    /// Writes the whole chunks that hold these frames.
    fn write_bits(&self, frames: &Range<u64>, is_set: impl Fn(u64) -> bool) {
        let chunks = frames.start / 64..frames.end.div_ceil(64);
        let words = chunks
            .clone()
            .map(|chunk| (0..64).filter(|bit| is_set(chunk * 64 + bit)).fold(0, |word, bit| word | 1_u64 << bit));
        let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
        let len = bytes.len();
        assert_eq!(self.put(&format!("?offset={}", chunks.start * 8), bytes), (200, json!({ "written": len })));
    }

    /// The idle ones among some frames.
    fn idle(&self, frames: &Range<u64>) -> Vec<u64> {
        let chunks = frames.start / 64..frames.end.div_ceil(64);
        let query = format!("?offset={}&len={}", chunks.start * 8, (chunks.end - chunks.start) * 8);
        let (status, bytes) = self.get(&query);
        assert_eq!(status, 200);
        let words = bytes.as_chunks().0.iter().map(|chunk| u64::from_ne_bytes(*chunk));
        let bits = (chunks.start..)
            .zip(words)
            .flat_map(|(chunk, word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| chunk * 64 + bit));
        bits.filter(|frame| frames.contains(frame)).collect()
    }
}

/// What is done before the bitmap is read.
enum Step {
    /// Writes ones for these frames and zeros for the others of their chunks.
    Mark(Range<u64>),
    /// Writes the chunks of these frames, with ones only for those.
    MarkOnly(Range<u64>, Vec<u64>),
    /// The guest reads a word of the frame.
    Read(u64),
    /// The guest writes one.
    Write(u64),
    /// The frames leave for the swap area.
    Evict(Range<u64>),
    /// The frames are locked in memory.
    Lock(Range<u64>),
    /// They are not any more.
    Unlock(Range<u64>),
    /// Waits until the frames are back for good: the guest goes on a moment before whoever brought a page back lets go of it, and until then
    /// marks are ignored.
    Settle(Range<u64>),
    /// The whole bitmap is read.
    Look,
}

use Step::{Evict, Lock, Look, Mark, MarkOnly, Read, Settle, Unlock, Write};

/// What the frames of a piece of memory read as, after some steps. Rows use frames of their own, so that they do not disturb each other.
struct Meaning {
    what: &'static str,
    steps: Vec<Step>,
    looked_at: Range<u64>,
    idle: Vec<u64>,
}

fn meaning(
    what: &'static str,
    steps: Vec<Step>,
    looked_at: Range<u64>,
    idle: impl IntoIterator<Item = u64>,
) -> Meaning {
    Meaning { what, steps, looked_at, idle: idle.into_iter().collect() }
}

fn meanings() -> Vec<Meaning> {
    let piece = |index: u64| WORK + index * 16..WORK + (index + 1) * 16;
    let without = |frames: Range<u64>, gone: &[u64]| {
        let gone = gone.to_vec();
        frames.filter(move |frame| !gone.contains(frame))
    };
    let a = |index: u64| piece(index).start;
    vec![
        meaning("never marked", vec![], piece(0), []),
        meaning("marked and not accessed", vec![Mark(piece(0))], piece(0), piece(0)),
        meaning("looking is no access, and takes no mark", vec![Mark(piece(0)), Look, Look], piece(0), piece(0)),
        meaning("read by the guest", vec![Mark(piece(1)), Read(a(1) + 3)], piece(1), without(piece(1), &[a(1) + 3])),
        meaning("written by it", vec![Mark(piece(1)), Write(a(1) + 4)], piece(1), without(piece(1), &[a(1) + 4])),
        meaning("an access is told once and for all", vec![Mark(piece(1)), Read(a(1)), Look, Look], piece(1), {
            without(piece(1), &[a(1)])
        }),
        meaning("marked again after an access", vec![Mark(piece(1)), Read(a(1)), Mark(piece(1))], piece(1), piece(1)),
        meaning(
            "an access before the mark does not count",
            vec![Read(a(2) + 1), Write(a(2) + 2), Mark(piece(2))],
            piece(2),
            piece(2),
        ),
        meaning("one frame of 64 is marked", vec![MarkOnly(piece(3), vec![a(3) + 7])], piece(3), [a(3) + 7]),
        meaning("zeros leave a mark as it is", vec![Mark(piece(4)), MarkOnly(piece(4), vec![])], piece(4), piece(4)),
        meaning(
            "zeros leave an access as it is",
            vec![Mark(piece(4)), Read(a(4)), MarkOnly(piece(4), vec![])],
            piece(4),
            without(piece(4), &[a(4)]),
        ),
        meaning("out: marks are ignored", vec![Evict(piece(5)), Mark(piece(5))], piece(5), []),
        meaning("marked, then out", vec![Mark(piece(6)), Evict(piece(6))], piece(6), []),
        meaning(
            "out and back: not idle before it is marked again",
            vec![Mark(piece(7)), Evict(piece(7)), Read(a(7)), Read(a(7) + 1)],
            piece(7),
            [],
        ),
        meaning(
            "back, and marked again",
            vec![Evict(piece(8)), Read(a(8)), Read(a(8) + 1), Settle(a(8)..a(8) + 2), Mark(piece(8)), Read(a(8))],
            piece(8),
            [a(8) + 1],
        ),
        meaning("locked: marks are ignored", vec![Lock(piece(9)), Mark(piece(9))], piece(9), []),
        meaning("marked, then locked", vec![Mark(piece(10)), Lock(piece(10))], piece(10), []),
        meaning("locked no more", vec![Unlock(piece(10)), Mark(piece(10))], piece(10), piece(10)),
        meaning("never touched: marks are ignored", vec![Mark(LOW.end..LOW.end + 128)], LOW.end..LOW.end + 128, []),
        meaning(
            "touched for the first time after the mark",
            vec![Mark(LOW.end + 128..LOW.end + 192), Write(LOW.end + 130)],
            LOW.end + 128..LOW.end + 192,
            [],
        ),
        meaning(
            "touched for the first time, then marked",
            vec![Write(LOW.end + 131), Mark(LOW.end + 128..LOW.end + 192)],
            LOW.end + 128..LOW.end + 192,
            [LOW.end + 130, LOW.end + 131],
        ),
        meaning(
            "the hole: marks are ignored, on both sides they are not",
            vec![Mark(BEFORE_HOLE.start..HIGH.end)],
            BEFORE_HOLE.start..HIGH.end,
            BEFORE_HOLE.chain(HIGH),
        ),
        meaning(
            "memory beyond the hole has its own bits",
            vec![Mark(HIGH), Write(HIGH.start + 65)],
            HIGH,
            without(HIGH, &[HIGH.start + 65]),
        ),
        meaning(
            "memory before the hole too",
            vec![Mark(BEFORE_HOLE), Read(HOLE.start - 1)],
            BEFORE_HOLE,
            without(BEFORE_HOLE, &[HOLE.start - 1]),
        ),
    ]
}

#[test]
fn a_bit_means_what_it_means_in_the_kernels_bitmap() {
    let site = Site::new();
    for row in meanings() {
        row.steps.iter().for_each(|step| site.step(step));
        assert_eq!(site.idle(&row.looked_at), row.idle, "{}", row.what);
    }
}

/// Inside a huge page the kernel's bitmap knows only the first frame; here all frames stand for the page.
fn meanings_in_huge_pages() -> Vec<Meaning> {
    let page = |index: u64| WORK + index * HUGE..WORK + (index + 1) * HUGE;
    let a = |index: u64| page(index).start;
    vec![
        meaning("marked and not accessed", vec![Mark(page(0))], page(0), page(0)),
        meaning("one access makes all of it busy", vec![Mark(page(0)), Read(a(0) + 300)], page(0), []),
        meaning("a mark on one frame marks all of it", vec![MarkOnly(page(0), vec![a(0) + 77])], page(0), page(0)),
        meaning("zeros leave marks as they are", vec![MarkOnly(page(0), vec![])], page(0), page(0)),
        meaning("its neighbour is another page", vec![Mark(a(0)..a(2)), Write(a(1) + 511)], a(0)..a(2), page(0)),
        meaning("out: marks are ignored", vec![Evict(page(2)), Mark(page(2))], page(2), []),
        meaning(
            "back as a whole, and marked again",
            vec![Read(a(2) + 5), Settle(page(2)), Mark(page(2))],
            page(2),
            page(2),
        ),
        meaning("never touched: marks are ignored", vec![Mark(page(4))], page(4), []),
    ]
}

#[test]
fn inside_a_huge_page_all_frames_are_one() {
    // Also those that the image's own memory is made of.
    let _pool = Pool::with(2 + 5);
    let site = Site::with_huge_pages();
    for row in meanings_in_huge_pages() {
        row.steps.iter().for_each(|step| site.step(step));
        assert_eq!(site.idle(&row.looked_at), row.idle, "{}", row.what);
    }
}

/// A request, and its answer.
enum Request {
    /// Reading: the status, and how many bytes come.
    Get(String, u16, u64),
    /// Writing that many bytes of ones: the status, and how many were taken.
    Put(String, u64, u16, Option<u64>),
}

#[test]
fn offsets_and_lengths_are_whole_chunks_and_end_with_memory() {
    use Request::{Get, Put};
    let query = |offset: u64, len: u64| format!("?offset={offset}&len={len}");
    let at = |offset: u64| format!("?offset={offset}");
    let rows = [
        // The kernel says EINVAL.
        ("an offset inside a chunk", Get(query(4, 8), 400, 0)),
        ("a length that is no chunk", Get(query(8, 12), 400, 0)),
        ("both", Get(query(1, 1), 400, 0)),
        ("an offset inside a chunk, beyond the end", Get(at(LEN + 1), 400, 0)),
        ("writing inside a chunk", Put(at(4), 8, 400, None)),
        ("writing half a chunk", Put(at(0), 4, 400, None)),
        ("writing a chunk and a half", Put(at(0), 12, 400, None)),
        ("writing inside a chunk, beyond the end", Put(at(LEN + 4), 8, 400, None)),
        // Whole chunks.
        ("everything", Get(String::new(), 200, LEN)),
        ("one chunk", Get(query(8, 8), 200, 8)),
        ("no chunk", Get(query(8, 0), 200, 0)),
        ("the last chunk", Get(query(LEN - 8, 8), 200, 8)),
        ("writing no chunk", Put(at(0), 0, 200, Some(0))),
        ("writing one chunk", Put(at(0), 8, 200, Some(8))),
        ("writing the last chunk", Put(at(LEN - 8), 8, 200, Some(8))),
        // Shortened at the end; the kernel answers how many bytes it did.
        ("reading over the end", Get(query(LEN - 16, 64), 200, 16)),
        ("reading far over the end", Get(query(LEN - 8, 1 << 40), 200, 8)),
        ("writing over the end", Put(at(LEN - 16), 64, 200, Some(16))),
        ("everything and more", Put(at(0), LEN + 64, 200, Some(LEN))),
        // Reading there gives nothing, writing says ENXIO.
        ("reading at the end", Get(at(LEN), 200, 0)),
        ("reading beyond it", Get(query(LEN + 8, 8), 200, 0)),
        ("reading far beyond it", Get(at(u64::MAX - 7), 200, 0)),
        ("writing at the end", Put(at(LEN), 8, 416, None)),
        ("writing beyond it", Put(at(LEN + 8), 8, 416, None)),
        ("writing far beyond it", Put(at(1 << 60), 8, 416, None)),
        // What a file's offset can't say.
        ("an end beyond 64 bits", Get(query(u64::MAX - 7, 16), 400, 0)),
        ("writing up to beyond 64 bits", Put(at(u64::MAX - 7), 16, 400, None)),
        ("a length that is not the body's", Put(query(0, 16), 8, 400, None)),
    ];
    let site = Site::new();
    let bits_before = site.idle(&(0..END));
    assert!(bits_before.is_empty(), "nothing was marked yet");
    for (what, request) in rows {
        match request {
            Get(query, status, bytes) => {
                let (found, body) = site.get(&query);
                assert_eq!(found, status, "{what}: {}", String::from_utf8_lossy(&body));
                assert!(status != 200 || body.len() as u64 == bytes, "{what}: {} bytes", body.len());
            }
            Put(query, bytes, status, written) => {
                let (found, answer) = site.put(&query, vec![0xff; usize::try_from(bytes).expect("small")]);
                assert_eq!(
                    (found, answer.get("written").and_then(Value::as_u64)),
                    (status, written),
                    "{what}: {answer}"
                );
            }
        }
    }
}

#[test]
fn a_refused_write_marks_nothing() {
    let site = Site::new();
    let ones = |bytes: usize| vec![0xff; bytes];
    let offset = WORK / 8;
    for (query, bytes) in [
        (format!("?offset={}", offset + 4), 64),
        (format!("?offset={offset}"), 60),
        (format!("?offset={offset}&len=64"), 56),
        (format!("?offset={}", LEN), 64),
    ] {
        assert!(site.put(&query, ones(bytes)).0 >= 400, "{query}");
        assert!(site.idle(&LOW).is_empty(), "{query}");
    }
    assert_eq!(site.put(&format!("?offset={offset}"), ones(8)), (200, json!({ "written": 8 })));
    assert_eq!(site.idle(&LOW), (WORK..WORK + 64).collect::<Vec<_>>());
}
