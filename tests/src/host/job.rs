//! A job for a host: a shell script, the files it needs, and where it runs.
//!
//! Promises: the same script runs unchanged in the emulated host and on this machine; the job ends within its time limit, and everything it
//! started ends with it; all it said is kept in `target/logs/<name>/`. Must never: leave an emulator behind, or report success when the script
//! did not say so.
//!
//! Now and then the emulated host stops altogether. An emulator that delivered an interrupt to code with interrupts off, so that a kernel
//! waited for itself for ever, was seen once in a memory dump; that this is the cause each time is not proved. When it happens, the host's
//! sign of life fails to appear, and the job is started again from the beginning, which is said. No fault of `ebb` can do that: the host's
//! kernel answers for the sign of life, and a guest or an `ebb` that hangs does not stop it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::artifacts::{self, ArtifactError};
use super::emulated;
use super::initramfs::InitramfsError;
use super::outcome::{Line, Outcome, ValueError};

/// Why a job did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Something it needs is not there.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Its initramfs could not be made.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("{name}: not finished after {limit:?}, last step: {last_step}\n{tail}")]
    Timeout {
        /// The job.
        name: String,
        /// Its limit.
        limit: Duration,
        /// The last step it reported.
        last_step: String,
        /// The end of the host's console.
        tail: String,
    },
    /// The emulated host stopped altogether, though it was started more than once.
    #[error("{name}: the emulated host stopped running, {attempts} times in a row, last step: {last_step}\n{tail}")]
    Stuck {
        /// The job.
        name: String,
        /// How often it was started.
        attempts: u32,
        /// The last step it reported.
        last_step: String,
        /// The end of the host's console.
        tail: String,
    },
    /// The script failed, or the host ended without a word.
    #[error("{name}: {reason}\n{tail}")]
    Failed {
        /// The job.
        name: String,
        /// What the script said.
        reason: String,
        /// The end of the host's console.
        tail: String,
    },
    /// It reported something else than expected.
    #[error(transparent)]
    Value(#[from] ValueError),
}

/// Where a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An emulated machine with emulated virtualization: any Linux guest boots there, whatever this machine's KVM can do.
    Emulated,
    /// This machine. For hosts whose KVM runs guest kernel mode natively.
    Native,
}

/// Resources of the emulated machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Memory.
    pub memory_mib: u64,
    /// Size of the ext4 filesystem at `/data`; the file behind it is sparse.
    pub disk_mib: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self { memory_mib: 1024, disk_mib: 2048 }
    }
}

/// A script with its files.
#[derive(Debug)]
pub struct Job {
    pub(super) name: String,
    pub(super) files: Vec<(String, PathBuf)>,
    script: String,
    pub(super) machine: Machine,
    limit: Duration,
    silence: Duration,
}

/// How often a job is started when its emulated host stops running.
const ATTEMPTS: u32 = 3;

impl Job {
    /// A job under a name that no other job uses at the same time. The script runs with the functions of `resources/initramfs/lib.sh`,
    /// `$EBB_WORK` names an empty folder on a disk filesystem, and each file's variable names its path.
    pub fn new(name: &str, script: &str) -> Self {
        let (limit, silence) = (Duration::from_secs(300), Duration::from_secs(90));
        let (name, script) = (name.to_owned(), script.to_owned());
        Self { name, files: Vec::new(), script, machine: Machine::default(), limit, silence }
    }

    /// Gives the script a file, under the name of a shell variable.
    #[must_use]
    pub fn file(mut self, variable: &str, path: &Path) -> Self {
        self.files.push((variable.to_owned(), path.to_owned()));
        self
    }

    /// Sets a shell variable for the script.
    #[must_use]
    pub fn variable(mut self, variable: &str, value: impl std::fmt::Display) -> Self {
        self.script.insert_str(0, &format!("{variable}='{}'\n", value.to_string().replace('\'', r"'\''")));
        self
    }

    /// Sizes the emulated machine.
    #[must_use]
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = machine;
        self
    }

    /// Sets the time limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sets how long an emulated host may give no sign of life; it gives one every five seconds of its own time.
    #[must_use]
    pub fn silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// The whole script, its files found by `place_of`.
    pub(super) fn full_script(&self, place_of: impl Fn(&str, &Path) -> String) -> Result<String, JobError> {
        let library = artifacts::resource("initramfs/lib.sh");
        let mut script = std::fs::read_to_string(&library)
            .map_err(|source| JobError::System { what: format!("cannot read {}", library.display()), source })?;
        for (variable, path) in &self.files {
            script.push_str(&format!("{variable}='{}'\n", place_of(variable, path)));
        }
        script.push_str(&self.script);
        Ok(script)
    }

    /// Runs it, calling `seen` for each line as it comes.
    pub fn run(&self, place: Place, mut seen: impl FnMut(Duration, &Line)) -> Result<Outcome, JobError> {
        let mut attempt = 1;
        loop {
            match self.run_once(place, attempt, &mut seen) {
                Err(JobError::Stuck { .. }) if attempt < ATTEMPTS => {
                    eprintln!("{}: the emulated host stopped running; it is started again", self.name);
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    fn run_once(
        &self,
        place: Place,
        attempt: u32,
        seen: &mut impl FnMut(Duration, &Line),
    ) -> Result<Outcome, JobError> {
        let logs = artifacts::output_folder("logs")?.join(&self.name);
        let scratch = system("scratch folder", tempfile::tempdir_in(artifacts::output_folder("tmp")?))?;
        system("log folder", std::fs::create_dir_all(&logs))?;
        let console = logs.join("console.log");
        let command = match place {
            Place::Emulated => emulated::command(self, scratch.path(), &console)?,
            Place::Native => self.native_command(scratch.path(), &console)?,
        };
        let mut lines = system("log of lines", std::fs::File::create(logs.join("lines.log")))?;
        let silence = match place {
            Place::Emulated => self.silence,
            Place::Native => Duration::MAX,
        };
        let supervised = self.supervise(command, silence, |at, text, line| {
            // For whoever reads it afterwards; the run itself does not depend on it.
            drop(writeln!(lines, "{:8.2} {text}", at.as_secs_f64()));
            seen(at, line);
        })?;
        let outcome = match supervised {
            Supervised::Ended(outcome) => outcome,
            Supervised::TimeIsUp { last_step } => {
                let (name, limit, tail) = (self.name.clone(), self.limit, tail_of(&console));
                return Err(JobError::Timeout { name, limit, last_step, tail });
            }
            Supervised::Silent { last_step } => {
                let (name, attempts, tail) = (self.name.clone(), attempt, tail_of(&console));
                return Err(JobError::Stuck { name, attempts, last_step, tail });
            }
        };
        if outcome.succeeded() {
            return Ok(outcome);
        }
        let reason = match (&outcome.failures[..], outcome.exit) {
            ([], None) => "the host ended before its script did".to_owned(),
            ([], Some(status)) => format!("the script ended with status {status}"),
            (failures, _) => failures.join("; "),
        };
        Err(JobError::Failed { name: self.name.clone(), reason, tail: tail_of(&console) })
    }

    fn native_command(&self, scratch: &Path, console: &Path) -> Result<Command, JobError> {
        let mut script = self.full_script(|_, path| path.display().to_string())?;
        // A subshell, so that `exit` in the script still lets its status be reported.
        script = format!("(\n{script}\n)\necho \"EBB-EXIT $?\"\n");
        let path = scratch.join("script.sh");
        system("script", std::fs::write(&path, script))?;
        let mut command = Command::new("sh");
        command.arg(path).env("EBB_RESULTS", "/dev/stdout").env("EBB_WORK", scratch).current_dir(scratch);
        command.stderr(system("console log", std::fs::File::create(console))?);
        Ok(command)
    }

    fn supervise(
        &self,
        mut command: Command,
        silence: Duration,
        mut seen: impl FnMut(Duration, &str, &Line),
    ) -> Result<Supervised, JobError> {
        let start = Instant::now();
        let program = command.get_program().to_string_lossy().into_owned();
        // A group of its own, so that all it starts can be ended with it.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let child = emulated::die_with_parent(&mut command).spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => JobError::Artifact(ArtifactError::NotInstalled("qemu-system-x86")),
            _ => JobError::System { what: program, source },
        })?;
        let mut child = KillOnDrop(child);
        let stdout = child.0.stdout.take().expect("its standard output was just made a pipe");
        let (sender, lines) = channel();
        let reader = std::thread::spawn(move || {
            // Lossy, since a host that dies may leave half a character.
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut outcome = Outcome::default();
        loop {
            let left = self.limit.saturating_sub(start.elapsed());
            match lines.recv_timeout(left.min(silence)) {
                Ok(text) => {
                    let line = Line::parse(&text);
                    seen(start.elapsed(), text.trim_end(), &line);
                    outcome.take(start.elapsed(), processor_time(child.0.id()), line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let last_step = outcome.steps.pop().map_or_else(|| "none".to_owned(), |(_, text)| text);
                    drop(child);
                    return Ok(if left <= silence {
                        Supervised::TimeIsUp { last_step }
                    } else {
                        Supervised::Silent { last_step }
                    });
                }
            }
        }
        drop(child);
        // It has seen the end of the pipe, since that is what disconnected us.
        drop(reader.join());
        Ok(Supervised::Ended(outcome))
    }
}

/// How a process under supervision came to its end.
enum Supervised {
    /// By itself.
    Ended(Outcome),
    /// It was killed at its limit.
    TimeIsUp { last_step: String },
    /// It was killed because it gave no sign of life.
    Silent { last_step: String },
}

/// Processor time that a process has used so far, to 10 ms; 0 if it is gone. For an emulated host with one processor that is the work it has
/// done, whatever else this machine did meanwhile.
fn processor_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, in brackets, may hold anything; fields 14 and 15 are 12 and 13 behind it (proc(5)), in ticks of 10 ms.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn system<T>(what: &str, result: io::Result<T>) -> Result<T, JobError> {
    result.map_err(|source| JobError::System { what: what.to_owned(), source })
}

/// Waits for a child that has closed its output, and kills it when it lingers or when its owner gives up on it.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Errors mean that it is gone already, which is what is wanted.
        if let Ok(group) = i32::try_from(self.0.id()) {
            // SAFETY: `kill` touches no memory of ours. The group is our child's own, made for it when it was started, and the child has not
            // been waited for yet, so its number can't be another's.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        drop(self.0.wait());
    }
}

/// The last lines of a log, and where the rest is.
fn tail_of(log: &Path) -> String {
    const LINES: usize = 60;
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    format!("--- last lines of {} ---\n{}\n---", log.display(), lines[from..].join("\n"))
}
