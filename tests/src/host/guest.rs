//! What is done with Linux guests: boot one to its end, run the main job (fill, idle, evict, verify) on one, or anything else by a script.
//!
//! Promises: what a result says was reported by the host, the guest or `ebb` itself, nothing is assumed. Must never: judge; whether a result is
//! good is for the test or the demo to say.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::artifacts::{self, Kernel, output_folder};
use super::job::{Job, JobError, Machine, Place};
use super::outcome::{Line, Outcome, ValueError, json_number};

const BOOT: &str = include_str!("scripts/boot.sh");
const TIERING: &str = include_str!("scripts/tiering.sh");

/// A boot of one guest, until it ends by itself.
#[derive(Clone, Debug)]
pub struct BootRun<'a> {
    /// The image to boot, of `kernel`.
    pub image: &'a Path,
    /// The kernel, whose modules go into the guest's initramfs.
    pub kernel: &'a Kernel,
    /// vCPUs.
    pub cpus: u8,
    /// Words for the guest's kernel command line.
    pub cmdline: &'a str,
    /// Steps for the guest's first program.
    pub steps: &'a str,
    /// Further words to `ebb run`.
    pub options: &'a str,
}

/// How a boot went.
#[derive(Debug)]
pub struct BootResult {
    /// Exit status of `ebb run`.
    pub status: i32,
    /// What `ebb` wrote to its standard error, lines parted by `|`.
    pub stderr: String,
    /// What the guest's first program found, as `name=value` words.
    pub guest: Vec<String>,
    /// Whether the guest's kernel said that it panicked.
    pub panicked: bool,
}

impl BootResult {
    /// Whether the guest said this, word for word.
    pub fn said(&self, line: &str) -> bool {
        self.guest.iter().any(|said| said == line)
    }

    /// The value the guest gave for a name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.guest.iter().find_map(|said| said.strip_prefix(name)?.strip_prefix('='))
    }
}

impl BootRun<'_> {
    /// Boots it on the emulated host.
    pub fn run(&self, name: &str) -> Result<BootResult, JobError> {
        let job = guest_job(name, BOOT, self.kernel, self.image)?;
        let job = job.variable("CPUS", self.cpus).variable("MEMORY", "256M").variable("DO", self.steps);
        let job = job.variable("CMDLINE", self.cmdline).variable("OPTIONS", self.options);
        let outcome = job.limit(Duration::from_secs(180)).run(Place::Emulated, |_, _| {})?;
        let guest = outcome.others.iter().filter_map(|line| line.strip_prefix("GUEST ")).map(str::to_owned).collect();
        let (status, stderr) = (outcome.number("status")?, outcome.text("stderr")?.to_owned());
        Ok(BootResult { status, stderr, guest, panicked: outcome.text("panicked").is_ok() })
    }
}

/// The main job on one guest.
#[derive(Clone, Debug)]
pub struct TieringRun {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// vCPUs.
    pub cpus: u8,
    /// The guest's memory.
    pub memory_mib: u64,
    /// Share of it that the guest fills.
    pub percent: u8,
    /// How often it goes out and comes back.
    pub rounds: u32,
    /// What the contents follow from.
    pub seed: u64,
}

/// What guest memory holds, as `ebb` counts it and as the host's kernel does.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Resident pages by `GET /memtier`.
    pub resident: u64,
    /// Pages in the guest's memory files by the host's kernel.
    pub held: u64,
}

/// One time out and back.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Pages the last scan found idle, and accessed.
    pub idle: u64,
    /// See `idle`.
    pub accessed: u64,
    /// Pages that left.
    pub evicted: u64,
    /// After they left.
    pub after: Snapshot,
    /// Pages looked at when all was verified.
    pub pages_verified: u64,
    /// Bytes wrong among them.
    pub mismatches: u64,
    /// Bytes read back from the disk meanwhile.
    pub disk_bytes: u64,
    /// Bytes wrong among them.
    pub disk_mismatches: u64,
    /// Faults that brought a page back from a swap area, so far.
    pub faults_major: u64,
    /// Faults answered without a read, so far.
    pub faults_minor: u64,
}

/// How the main job went.
#[derive(Debug)]
pub struct TieringResult {
    /// From the start of `ebb` to the guest's first program, by the host's clock.
    pub boot_s: f64,
    /// Pages the guest filled.
    pub filled: u64,
    /// Faults that `ebb` had to answer until then.
    pub faults_before: u64,
    /// With the guest's memory filled.
    pub before: Snapshot,
    /// Each time out and back.
    pub rounds: Vec<Round>,
    /// Fault latency over the whole job, in microseconds: median, 99th percentile.
    pub fault_p50_us: u64,
    /// See `fault_p50_us`.
    pub fault_p99_us: u64,
    /// Exit status of `ebb run`.
    pub status: i32,
    /// Exit status of the guest's workload.
    pub work_status: i32,
}

impl TieringRun {
    /// Runs it, calling `seen` for each line as it comes.
    pub fn run(&self, name: &str, place: Place, seen: impl FnMut(Duration, &Line)) -> Result<TieringResult, JobError> {
        let job = guest_job(name, TIERING, &self.kernel, &self.kernel.bz_image)?;
        let (memory, swap) = (self.memory_mib, self.memory_mib);
        let job = job.variable("CPUS", self.cpus).variable("MEMORY_MIB", memory).variable("SWAP_MIB", swap);
        let job = job.variable("PERCENT", self.percent).variable("SEED", self.seed).variable("ROUNDS", self.rounds);
        let machine = Machine { memory_mib: 512 + self.memory_mib * 3 / 2, ..Machine::default() };
        let outcome = job.machine(machine).limit(Duration::from_secs(600)).run(place, seen)?;
        self.read(&outcome).map_err(JobError::Value)
    }

    fn read(&self, outcome: &Outcome) -> Result<TieringResult, ValueError> {
        let rounds = (1..=self.rounds).map(|round| read_round(outcome, round)).collect::<Result<Vec<_>, _>>()?;
        let before = outcome.json("before")?;
        let last = outcome.json(&format!("back.{}", self.rounds))?;
        Ok(TieringResult {
            boot_s: outcome.number("boot_s")?,
            filled: word(outcome, "filled", "pages")?,
            faults_before: faults(&before)?,
            before: snapshot(outcome, "before")?,
            rounds,
            fault_p50_us: json_number(&last, "/fault_latency/p50_us")?,
            fault_p99_us: json_number(&last, "/fault_latency/p99_us")?,
            status: outcome.number("status")?,
            work_status: outcome.number("work_status")?,
        })
    }
}

/// The parts of a scan's report that are looked at.
#[derive(Deserialize)]
struct Scan {
    loops: Vec<ScanLoop>,
}

#[derive(Deserialize)]
struct ScanLoop {
    idle: u64,
    accessed: u64,
}

fn read_round(outcome: &Outcome, round: u32) -> Result<Round, ValueError> {
    let name = |what: &str| format!("{what}.{round}");
    let scan_name = name("scan");
    let scan: Scan = serde_json::from_value(outcome.json(&scan_name)?).map_err(|error| ValueError::Form {
        name: scan_name.clone(),
        value: error.to_string(),
        wanted: "scan report",
    })?;
    let last = scan.loops.last().ok_or(ValueError::Missing(scan_name))?;
    let back = outcome.json(&name("back"))?;
    Ok(Round {
        idle: last.idle,
        accessed: last.accessed,
        evicted: json_number(&outcome.json(&name("reclaim"))?, "/outcomes/evicted")?,
        after: snapshot(outcome, &name("after"))?,
        pages_verified: word(outcome, &name("verified"), "pages")?,
        mismatches: word(outcome, &name("verified"), "mismatches")?,
        disk_bytes: word(outcome, &name("disk"), "bytes")?,
        disk_mismatches: word(outcome, &name("disk"), "mismatches")?,
        faults_major: json_number(&back, "/counters/faults_major")?,
        faults_minor: json_number(&back, "/counters/faults_minor")?,
    })
}

fn snapshot(outcome: &Outcome, name: &str) -> Result<Snapshot, ValueError> {
    let resident = json_number(&outcome.json(name)?, "/resident_pages")?;
    Ok(Snapshot { resident, held: outcome.number(&format!("{name}.held"))? })
}

/// All faults that reached `ebb`, by a status.
pub fn faults(status: &Value) -> Result<u64, ValueError> {
    let names = ["faults_major", "faults_minor", "faults_write_protect"];
    names.iter().map(|name| json_number(status, &format!("/counters/{name}"))).sum()
}

/// The number behind `word=` in a reported line such as `FILLED pages=12 ms=3`.
fn word(outcome: &Outcome, name: &str, word: &str) -> Result<u64, ValueError> {
    let line = outcome.text(name)?;
    let found = line.split_whitespace().find_map(|part| part.strip_prefix(word)?.strip_prefix('=')?.parse().ok());
    let form = || ValueError::Form { name: name.to_owned(), value: line.to_owned(), wanted: "line with that number" };
    found.ok_or_else(form)
}

/// A job with what every guest needs: `$EBB`, `$KERNEL`, `$INITRD`, `$LOGLEVEL`.
pub fn guest_job(name: &str, script: &str, kernel: &Kernel, image: &Path) -> Result<Job, JobError> {
    // The archive is read when the job runs, so it must outlive this function; one name, one file.
    let scratch = output_folder("tmp")?.join(name);
    std::fs::create_dir_all(&scratch)
        .map_err(|source| JobError::System { what: scratch.display().to_string(), source })?;
    let initrd = scratch.join("guest.cpio");
    artifacts::guest_initramfs(kernel, &scratch)?.write_file(&initrd)?;
    let ebb = artifacts::stripped(&artifacts::program("ebb")?, &scratch)?;
    // Kernel messages may cut the guest's own lines in two, so it speaks only when something is wrong; unless somebody looks for that.
    let loglevel = std::env::var("EBB_GUEST_LOGLEVEL").unwrap_or_else(|_| "4".to_owned());
    let job = Job::new(name, script).variable("LOGLEVEL", loglevel);
    Ok(job.file("EBB", &ebb).file("KERNEL", image).file("INITRD", &initrd))
}
