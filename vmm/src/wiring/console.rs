//! The console: the first serial port's way out to a file or a terminal, and in from a keyboard.
//!
//! Promises: output waits for a slow reader as long as the guest runs, and no longer: a pause or a stop is never held up by it. Input beyond
//! what the guest takes waits here. Must never: lose input while the guest runs; leave a terminal in raw mode.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::SerialPort;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::terminal::RawTerminal;
use crate::config::ConsoleConfig;
use crate::vcpu::gate::{Gate, Order};

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The output file.
    #[error("cannot write console file {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Standard input or output.
    #[error("cannot use standard input and output as console")]
    Stdio(#[source] io::Error),
    /// The input thread.
    #[error("cannot start the console's thread")]
    Thread(#[source] io::Error),
}

/// Where the serial port writes to.
pub fn output(config: &ConsoleConfig, gate: Arc<Gate>) -> Result<Box<dyn Write + Send>, ConsoleError> {
    let file = match config {
        ConsoleConfig::Off => return Ok(Box::new(io::sink())),
        ConsoleConfig::Stdio => duplicate(io::stdout().as_fd()).map_err(ConsoleError::Stdio)?,
        ConsoleConfig::File(path) => {
            File::create(path).map_err(|source| ConsoleError::File { path: path.clone(), source })?
        }
    };
    Ok(Box::new(Output { file, gate }))
}

fn duplicate(fd: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(fd.try_clone_to_owned()?))
}

/// Unbuffered output that gives up only when the guest is to stand still.
struct Output {
    file: File,
    gate: Arc<Gate>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The order is looked at after each of these; a stop while nobody reads costs one round.
        const PATIENCE: Duration = Duration::from_millis(50);
        loop {
            if poll(&mut [wait_for(self.file.as_raw_fd(), libc::POLLOUT)], Some(PATIENCE))? {
                return self.file.write(bytes);
            }
            if self.gate.order() != Order::Run {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Input from the keyboard, until this drops.
pub struct Input {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    _terminal: Option<RawTerminal>,
}

impl Input {
    /// Passes standard input to `serial`. `on_escape` is called when a person at a terminal types Ctrl-A x.
    pub fn start(serial: Arc<Mutex<SerialPort>>, on_escape: impl Fn() + Send + 'static) -> Result<Self, ConsoleError> {
        let stdin = io::stdin();
        let keyboard = duplicate(stdin.as_fd()).map_err(ConsoleError::Stdio)?;
        let owned = stdin.as_fd().try_clone_to_owned().map_err(ConsoleError::Stdio)?;
        let terminal = RawTerminal::new(owned).map_err(ConsoleError::Stdio)?;
        let escape = terminal.is_some().then(Escape::default);
        Self::spawn(keyboard, serial, terminal, escape, on_escape)
    }

    fn spawn(
        keyboard: File,
        serial: Arc<Mutex<SerialPort>>,
        terminal: Option<RawTerminal>,
        escape: Option<Escape>,
        on_escape: impl Fn() + Send + 'static,
    ) -> Result<Self, ConsoleError> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(ConsoleError::Thread);
        let stop = event()?;
        let stopped = stop.try_clone().map_err(ConsoleError::Thread)?;
        let room = lock(&serial).room_event().try_clone().map_err(ConsoleError::Thread)?;
        let reader = Reader { keyboard: Some(keyboard), serial, room, stopped, escape, waiting: Vec::new() };
        let thread = thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                if let Err(error) = reader.run(on_escape) {
                    tracing::warn!("console input ends: {error}");
                }
            })
            .map_err(ConsoleError::Thread)?;
        Ok(Self { stop, thread: Some(thread), _terminal: terminal })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // An eventfd below its maximum takes a write.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the console's thread panicked");
        }
    }
}

struct Reader {
    /// `None` once it has ended.
    keyboard: Option<File>,
    serial: Arc<Mutex<SerialPort>>,
    room: EventFd,
    stopped: EventFd,
    escape: Option<Escape>,
    /// What the serial port had no room for.
    waiting: Vec<u8>,
}

impl Reader {
    fn run(mut self, on_escape: impl Fn()) -> io::Result<()> {
        let mut bytes = [0; 256];
        loop {
            let keyboard = self.keyboard.as_ref().filter(|_| self.waiting.is_empty()).map_or(-1, AsRawFd::as_raw_fd);
            if keyboard < 0 && self.waiting.is_empty() {
                return Ok(());
            }
            let mut files = [self.stopped.as_raw_fd(), self.room.as_raw_fd(), keyboard].map(readable);
            poll(&mut files, None)?;
            let [stopped, room, keyboard] = files.map(|file| file.revents != 0);
            if stopped {
                return Ok(());
            }
            if room {
                // Nothing to read after an interrupted wait; the offer below decides.
                let _ = self.room.read();
            }
            if keyboard && let Some(file) = &mut self.keyboard {
                match file.read(&mut bytes) {
                    Ok(0) => self.keyboard = None,
                    Ok(count) => self.take(&bytes[..count], &on_escape),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.offer();
        }
    }

    fn take(&mut self, bytes: &[u8], on_escape: &impl Fn()) {
        match &mut self.escape {
            None => self.waiting.extend_from_slice(bytes),
            Some(escape) => {
                for byte in bytes {
                    match escape.feed(*byte) {
                        Typed::Key(key) => self.waiting.push(key),
                        Typed::Prefix => {}
                        Typed::End => on_escape(),
                    }
                }
            }
        }
    }

    fn offer(&mut self) {
        if !self.waiting.is_empty() {
            let taken = lock(&self.serial).enqueue(&self.waiting);
            self.waiting.drain(..taken);
        }
    }
}

/// Ctrl-A x, for people: ends the guest. Ctrl-A twice is one Ctrl-A for the guest.
#[derive(Default)]
struct Escape {
    prefixed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Key(u8),
    Prefix,
    End,
}

impl Escape {
    fn feed(&mut self, byte: u8) -> Typed {
        const CTRL_A: u8 = 1;
        match (std::mem::take(&mut self.prefixed), byte) {
            (false, CTRL_A) => {
                self.prefixed = true;
                Typed::Prefix
            }
            (true, b'x' | b'X') => Typed::End,
            (_, key) => Typed::Key(key),
        }
    }
}

fn lock(serial: &Mutex<SerialPort>) -> std::sync::MutexGuard<'_, SerialPort> {
    serial.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_for(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

fn readable(fd: RawFd) -> libc::pollfd {
    wait_for(fd, libc::POLLIN)
}

/// Waits for one of `files`; an interrupting signal counts as the end of the time. True if one is ready.
fn poll(files: &mut [libc::pollfd], time: Option<Duration>) -> io::Result<bool> {
    let time = time.map_or(-1, |time| i32::try_from(time.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: pointer and length are those of one slice, which the kernel reads and whose `revents` it writes.
    let ready = unsafe { libc::poll(files.as_mut_ptr(), files.len() as libc::nfds_t, time) };
    match ready {
        0.. => Ok(ready > 0),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::BusDevice;
    use std::time::Instant;

    #[test]
    fn ctrl_a_x_ends_and_ctrl_a_twice_is_one() {
        let mut escape = Escape::default();
        let typed: Vec<_> = b"a\x01x\x01\x01b\x01c".iter().map(|byte| escape.feed(*byte)).collect();
        use Typed::{End, Key, Prefix};
        assert_eq!(typed, [Key(b'a'), Prefix, End, Prefix, Key(1), Key(b'b'), Prefix, Key(b'c')]);
    }

    #[test]
    fn output_that_nobody_reads_does_not_hold_up_a_stop() {
        let (reader, writer) = io::pipe().expect("pipe");
        let gate = Arc::new(Gate::new());
        gate.resume();
        let mut output = Output { file: File::from(std::os::fd::OwnedFd::from(writer)), gate: Arc::clone(&gate) };
        let stopper = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.stop()
        });
        // More than any pipe holds: without a stop this would wait for ever.
        let error = (0..1 << 22).find_map(|_| output.write_all(&[b'x'; 64]).err()).expect("gives up");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        stopper.join().expect("stopped");
        drop(reader);
    }

    #[test]
    fn more_input_than_there_is_room_for_arrives_complete() {
        let (reader, mut writer) = io::pipe().expect("pipe");
        let event = EventFd::new(EFD_NONBLOCK).expect("event");
        let serial = SerialPort::new(event, Box::new(io::sink())).expect("serial");
        let serial = Arc::new(Mutex::new(serial));
        let keyboard = File::from(std::os::fd::OwnedFd::from(reader));
        let input = Input::spawn(keyboard, Arc::clone(&serial), None, None, || {}).expect("started");
        let sent: Vec<u8> = (0..20_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let sender = thread::spawn({
            let sent = sent.clone();
            move || writer.write_all(&sent)
        });
        let mut got = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while got.len() < sent.len() && Instant::now() < deadline {
            let mut port = lock(&serial);
            let mut status = [0];
            port.read(5, &mut status);
            if status[0] & 1 != 0 {
                let mut byte = [0];
                port.read(0, &mut byte);
                got.push(byte[0]);
            } else {
                drop(port);
                thread::yield_now();
            }
        }
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        sender.join().expect("no panic").expect("sent");
        drop(input);
    }
}
