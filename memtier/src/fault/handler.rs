//! The threads that answer faults.
//!
//! Promises: every event read is answered, or the frame's owner is left a mark that makes it owe a wake-up. Must never: end while a guest can still fault; a handler that panics takes the process with it, because a guest that
//! went on without one would find zero pages where its memory was.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::abort::AbortOnPanic;
use crate::arena::Arena;
use crate::counters::{Counter, EventCounters};
use crate::fault::fill::{FillError, Filler, Return, Slot, Source, Unreadable};
use crate::fault::latency::LatencyLog;
use crate::frame::word::{FrameWord, State};
use crate::page::PageSlab;
use crate::sys::uffd::Fault;
use crate::units::{FrameIndex, Shard};

/// How long a handler takes before it looks at the next fault when the host had no memory for one.
const DEFERRED: Duration = Duration::from_millis(1);

/// Which thread runs which vCPU, and how often each waited for a page to be read.
#[derive(Debug)]
pub struct VcpuThreads {
    vcpus: Box<[Vcpu]>,
}

#[derive(Debug, Default)]
struct Vcpu {
    /// 0: not known. Relaxed: a wrong answer only puts a free slot into another cache, or counts for another vCPU.
    thread: AtomicU32,
    major_faults: Counter,
}

impl VcpuThreads {
    /// For this many vCPUs.
    pub fn new(vcpus: u16) -> Self {
        Self { vcpus: (0..vcpus.max(1)).map(|_| Vcpu::default()).collect() }
    }

    /// vCPU `vcpu` runs on thread `tid`.
    pub fn set(&self, vcpu: u16, tid: u32) {
        if let Some(vcpu) = self.vcpus.get(usize::from(vcpu)) {
            vcpu.thread.store(tid, Ordering::Relaxed);
        }
    }

    /// The vCPU's shard, or the first one's for other threads.
    pub fn shard(&self, tid: u32) -> Shard {
        Shard(self.position(tid).and_then(|vcpu| u16::try_from(vcpu).ok()).unwrap_or(0))
    }

    /// Major faults of each vCPU so far: those that read a page from a tier. Those of other threads (devices, the loader) are in the sum over
    /// all only, [`EventCounters::faults_major`].
    pub fn major_faults(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.major_faults.get()).collect()
    }

    fn count_major(&self, tid: u32) {
        if let Some(vcpu) = self.position(tid) {
            self.vcpus[vcpu].major_faults.add(1);
        }
    }

    fn position(&self, tid: u32) -> Option<usize> {
        self.vcpus.iter().position(|vcpu| vcpu.thread.load(Ordering::Relaxed) == tid)
    }
}

/// What every handler works with.
#[derive(Debug)]
pub struct Answering {
    /// Guest memory.
    pub arena: Arc<Arena>,
    /// Brings pages back.
    pub filler: Arc<Filler>,
    /// Counts.
    pub counters: Arc<EventCounters>,
    /// Whose fault it is.
    pub threads: Arc<VcpuThreads>,
}

/// The running handlers.
#[derive(Debug)]
pub struct Handlers {
    stop: EventFd,
    threads: Vec<JoinHandle<()>>,
    latencies: Vec<Arc<LatencyLog>>,
}

impl Handlers {
    /// Starts `count` handlers; all read the same userfaultfd, each event goes to one of them.
    pub fn start(answering: Arc<Answering>, count: u16) -> io::Result<Self> {
        let mut handlers = Self { stop: EventFd::new(libc::EFD_NONBLOCK)?, threads: Vec::new(), latencies: Vec::new() };
        for index in 0..count.max(1) {
            let latency = Arc::new(LatencyLog::default());
            let stop = handlers.stop.try_clone()?;
            let handler = Handler { answering: Arc::clone(&answering), latency: Arc::clone(&latency), stop };
            let thread = std::thread::Builder::new().name(format!("fault-{index}")).spawn(move || handler.run())?;
            handlers.threads.push(thread);
            handlers.latencies.push(latency);
        }
        Ok(handlers)
    }

    /// Latencies of all handlers.
    pub fn latencies(&self) -> impl Iterator<Item = &LatencyLog> {
        self.latencies.iter().map(Arc::as_ref)
    }

    /// Stops and joins them. Only when nothing can fault any more.
    pub fn stop(&mut self) {
        // Never read, so it stays readable for all of them.
        if let Err(error) = self.stop.write(1) {
            tracing::error!(%error, "stopping the fault handlers failed");
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a fault handler panicked");
            }
        }
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Handler {
    answering: Arc<Answering>,
    latency: Arc<LatencyLog>,
    stop: EventFd,
}

impl Handler {
    fn run(self) {
        let _guard = AbortOnPanic;
        let mut buffer = self.answering.arena.memory.frame_buffer();
        while self.wait() {
            loop {
                match self.answering.arena.uffd.next_fault() {
                    Ok(Some(fault)) => {
                        let began = Instant::now();
                        self.answering.answer(&fault, &mut buffer);
                        self.latency.record(began.elapsed());
                    }
                    Ok(None) => break,
                    Err(error) => panic!("reading the userfaultfd failed: {error}"),
                }
            }
        }
    }

    /// Waits for an event; false when it is time to stop.
    fn wait(&self) -> bool {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [poll(self.answering.arena.uffd.as_fd().as_raw_fd()), poll(self.stop.as_raw_fd())];
        // SAFETY: two initialised entries, as the count says.
        while unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
            let error = io::Error::last_os_error();
            assert!(error.kind() == io::ErrorKind::Interrupted, "polling the userfaultfd failed: {error}");
        }
        fds[1].revents == 0
    }
}

impl Answering {
    fn answer(&self, fault: &Fault, buffer: &mut PageSlab) {
        let Some(frame) = self.arena.memory.index_of_hva(fault.page) else {
            tracing::error!(page = %fault.page, "fault outside guest memory");
            return;
        };
        loop {
            let word = self.arena.frames.get(frame);
            let answered = match word.state() {
                State::Swapped | State::Zero | State::Discarded | State::Untouched => self.fill(frame, fault, buffer),
                State::Evicting if fault.write_protect => self.open(frame, FrameWord::cancel),
                State::Resident if fault.write_protect => self.open(frame, FrameWord::open),
                State::Clean if fault.write_protect => {
                    // It will be written now, so the slot is of no use. Then it is Resident, or somebody else's: look again.
                    self.filler.forget_slot(frame, self.threads.shard(fault.thread));
                    false
                }
                // The page is there: an event that was overtaken. Trying again finds it.
                State::Evicting | State::Resident | State::Clean => self.wake(frame),
                // The owner's own wake-up may have come before this fault was queued; the mark makes it owe another.
                State::Leaving | State::Filling | State::Opening => {
                    self.arena.frames.update(frame, FrameWord::wait_for_owner).is_ok()
                }
                State::Poisoned => {
                    self.filler.install_poison(frame);
                    true
                }
            };
            if answered {
                return;
            }
        }
    }

    /// False: the frame moved on, look again.
    fn fill(&self, frame: FrameIndex, fault: &Fault, buffer: &mut PageSlab) -> bool {
        let shard = self.threads.shard(fault.thread);
        match self.filler.fill(frame, shard, buffer, Unreadable::Poison, Slot::KeepIfPlenty) {
            Ok(back) => self.count(back, fault.thread),
            Err(FillError::NotOut(_)) => return false,
            // Poisoned, logged and counted.
            Err(FillError::Unreadable { .. }) => {}
            Err(error @ FillError::Install { .. }) => self.defer(&error),
        }
        true
    }

    /// Memory is short, or the kernel is in trouble. The guest was woken and asks again, for as long as it takes: not at full speed, and not in
    /// the log every time.
    fn defer(&self, error: &FillError) {
        let times = self.counters.faults_deferred.next();
        if times.is_power_of_two() {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(%error, cause, times, "fault not answered yet");
        }
        std::thread::sleep(DEFERRED);
    }

    fn count(&self, back: Return, thread: u32) {
        match back.source {
            Source::Tier => {
                self.counters.faults_major.add(1);
                self.threads.count_major(thread);
            }
            Source::Zero => self.counters.faults_minor.add(1),
        }
        if let Some(stamp) = back.left_at {
            self.arena.refaults.count_refault(stamp);
        }
    }

    fn open(&self, frame: FrameIndex, transition: impl Fn(FrameWord) -> Option<FrameWord>) -> bool {
        let opened = self.arena.open(frame, transition).is_ok();
        self.counters.faults_write_protect.add(u64::from(opened));
        opened
    }

    fn wake(&self, frame: FrameIndex) -> bool {
        self.arena.wake(frame);
        true
    }
}
