//! The emulated host: QEMU without acceleration, one CPU with AMD's virtualization extensions and nested paging, our kernel with KVM in it.
//!
//! Promises: guests on it are true KVM guests; the emulator ends with the thread that started it. Must never: use more than one CPU (the
//! emulator then corrupts kernels that patch their own code), or reach the network.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::artifacts::{self, ArtifactError};
use super::initramfs::Initramfs;
use super::job::{Job, JobError};

/// Where the emulated host finds the job's files.
const FILES: &str = "files";

/// Puts the host's initramfs and disk into `scratch` and answers the command that starts it.
pub(super) fn command(job: &Job, scratch: &Path, console: &Path) -> Result<Command, JobError> {
    let kernel = artifacts::our_kernel()?;
    let script = job.full_script(|variable, _| format!("/{FILES}/{variable}"))?;
    let mut archive = Initramfs::new()
        .busybox(artifacts::busybox()?)?
        .file("init", 0o755, &artifacts::resource("initramfs/host-init"))?
        .bytes("test.sh", 0o644, script)?;
    for (variable, path) in &job.files {
        archive = archive.file(&format!("{FILES}/{variable}"), 0o755, path)?;
    }
    let initramfs = scratch.join("host.cpio");
    archive.write_file(&initramfs)?;
    let disk = scratch.join("data.img");
    make_filesystem(&disk, job.machine.disk_mib)?;

    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", &job.machine.memory_mib.to_string()]);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    qemu.arg("-kernel").arg(kernel.bz_image).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 panic=-1 tsc=reliable"]);
    qemu.arg("-serial").arg(prefixed("file:", console));
    qemu.args(["-serial", "stdio"]);
    qemu.arg("-drive").arg(prefixed("if=virtio,format=raw,cache=unsafe,discard=unmap,file=", &disk));
    // For whoever looks into a host that hangs, such as "-monitor unix:/tmp/monitor,server,nowait" or "-d int".
    let more = std::env::var("EBB_QEMU_ARGS").unwrap_or_default();
    qemu.args(more.split_whitespace());
    Ok(qemu)
}

/// Lets the process end with the thread that starts it, so that a test that is killed leaves no emulator behind.
pub(super) fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    }
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(prefix);
    argument.push(path);
    argument
}

/// Makes an ext4 filesystem in a sparse file. Few inodes and no lazy work left, so that nothing runs in the background later.
fn make_filesystem(image: &Path, mib: u64) -> Result<(), JobError> {
    let failed = |source| JobError::System { what: format!("cannot make {}", image.display()), source };
    std::fs::File::create(image).and_then(|file| file.set_len(mib << 20)).map_err(failed)?;
    // It lies in a folder that is not on every user's PATH.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new("mkfs.ext4")
        .env("PATH", path)
        .args(["-q", "-F", "-N", "1024", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(image)
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ArtifactError::NotInstalled("e2fsprogs").into()),
        Err(error) => Err(failed(error)),
    }
}
