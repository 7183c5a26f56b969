//! The things that a host needs: kernels, the programs just built, busybox, and the guest's initramfs.
//!
//! Promises: every path handed out exists; what is missing is named together with the command that brings it. Must never: build with cargo
//! (the caller did), or take a program from another build profile than its own.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::initramfs::{Initramfs, InitramfsError};

/// Why something that a host needs is not there.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A program that cargo builds is not beside the running one.
    #[error("{path} is not built: run `cargo build --workspace --bins`, or `make test`")]
    NotBuilt {
        /// Where it should be.
        path: PathBuf,
    },
    /// A tool of this machine is missing.
    #[error("{0} is not installed: run resources/setup.sh")]
    NotInstalled(&'static str),
    /// A script of ours failed; it said why itself.
    #[error("{script} failed with {status}")]
    Script {
        /// The script.
        script: PathBuf,
        /// How it ended.
        status: String,
    },
    /// The system refused something.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An initramfs could not be put together.
    #[error("initramfs")]
    Initramfs(#[from] InitramfsError),
}

/// The top of the source tree.
pub fn source_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the workspace")
}

/// A file under `resources/`.
pub fn resource(name: &str) -> PathBuf {
    source_root().join("resources").join(name)
}

/// `target/<name>`, made when missing: reports and logs go there, whatever the build folder is.
pub fn output_folder(name: &str) -> Result<PathBuf, ArtifactError> {
    let path = source_root().join("target").join(name);
    match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(ArtifactError::System { what: format!("cannot make {}", path.display()), source }),
    }
}

/// A program of this workspace, from the same build as the running one.
pub fn program(name: &str) -> Result<PathBuf, ArtifactError> {
    let unknown = |source| ArtifactError::System { what: "own path".to_owned(), source };
    let current = std::env::current_exe().map_err(unknown)?;
    let folder = current.parent().unwrap_or(Path::new("."));
    // Test programs lie one folder deeper than the others.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(name);
    if path.is_file() { Ok(path) } else { Err(ArtifactError::NotBuilt { path }) }
}

/// A copy of a program without its debug information, in `folder`: a fifth of the size, and the emulated host unpacks it faster.
pub fn stripped(program: &Path, folder: &Path) -> Result<PathBuf, ArtifactError> {
    let copy = folder.join(program.file_name().unwrap_or_default());
    let status = Command::new("strip").arg("-o").arg(&copy).arg(program).status();
    match status {
        Ok(status) if status.success() => Ok(copy),
        Ok(status) => Err(ArtifactError::Script { script: PathBuf::from("strip"), status: status.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ArtifactError::NotInstalled("binutils")),
        Err(source) => Err(ArtifactError::System { what: "strip".to_owned(), source }),
    }
}

/// The static busybox.
pub fn busybox() -> Result<&'static Path, ArtifactError> {
    let places = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new);
    places.into_iter().find(|path| path.is_file()).ok_or(ArtifactError::NotInstalled("busybox-static"))
}

/// A kernel and, when it has any, the modules its initramfs must bring.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The compressed image, as boot loaders take it.
    pub bz_image: PathBuf,
    /// The ELF image with its PVH note, where there is one.
    pub vmlinux: Option<PathBuf>,
    /// Folder of modules with their load order.
    pub modules: Option<PathBuf>,
}

/// The small kernel that is emulated host and guest alike; built on first use, which takes minutes.
pub fn our_kernel() -> Result<Kernel, ArtifactError> {
    let folder = folder_from_script("kernel/build.sh")?;
    Ok(Kernel { bz_image: folder.join("bzImage"), vmlinux: Some(folder.join("vmlinux")), modules: None })
}

/// Debian's stock 6.12 cloud kernel; fetched on first use.
pub fn stock_kernel() -> Result<Kernel, ArtifactError> {
    let folder = folder_from_script("kernel/stock.sh")?;
    Ok(Kernel { bz_image: folder.join("bzImage"), vmlinux: None, modules: Some(folder.join("modules")) })
}

/// What a test guest boots into: busybox, the workload, the kernel's modules, and the first program that obeys `ebb.do=`.
pub fn guest_initramfs(kernel: &Kernel, scratch: &Path) -> Result<Initramfs, ArtifactError> {
    let workload = stripped(&program("ebb-workload")?, scratch)?;
    let archive = Initramfs::new().busybox(busybox()?)?.file("init", 0o755, &resource("initramfs/guest-init"))?;
    let archive = archive.file("bin/ebb-workload", 0o755, &workload)?;
    Ok(match &kernel.modules {
        Some(modules) => archive.folder("modules", 0o644, modules)?,
        None => archive,
    })
}

/// Runs a script that prints one folder; what else it says goes to our standard error.
fn folder_from_script(name: &str) -> Result<PathBuf, ArtifactError> {
    let script = resource(name);
    let output = Command::new(&script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|source| ArtifactError::System { what: script.display().to_string(), source })?;
    if !output.status.success() {
        return Err(ArtifactError::Script { script, status: output.status.to_string() });
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
