//! The workspace, and cargo in it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result, bail};
use crate::process::{note, output};

/// Where all of it lies.
pub fn root() -> &'static Path {
    // This file lives in `xtask/src`, two levels below.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo, in the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Where cargo puts what it makes.
pub fn target() -> Result<PathBuf> {
    let metadata = output(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let path = metadata.split_once("\"target_directory\":\"").and_then(|(_, rest)| rest.split('"').next());
    path.map(PathBuf::from).ok_or_else(|| Error::new("cargo does not say where its target folder is"))
}

/// The manifest of one of our crates.
pub fn manifest(name: &str) -> Result<String> {
    let path = root().join(name).join("Cargo.toml");
    fs::read_to_string(&path).context(|| format!("cannot read {}", path.display()))
}

/// Runs a cargo command, shows what it says, and takes a warning for a failure.
pub fn without_warnings(mut command: Command) -> Result<()> {
    let mut child = command
        .env("CARGO_TERM_COLOR", "never")
        .stderr(Stdio::piped())
        .spawn()
        .context(|| format!("cannot start {command:?}"))?;
    let Some(said) = child.stderr.take() else { bail!("{command:?} has no output") };
    let mut warnings = 0;
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        warnings += usize::from(line.starts_with("warning"));
        note(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    if warnings > 0 {
        bail!("{command:?} warned");
    }
    Ok(())
}
