//! Programs from the package registries, unpacked into the cache folder.
//!
//! Debian packages are unpacked and not installed: no service of the system gets started or
//! changed by that, and it needs no root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::installing;
use crate::error::{Error, Result, bail};
use crate::process::{find_program, note, output};

/// An unpacked set of packages.
pub struct Unpacked {
    root: PathBuf,
}

impl Unpacked {
    fn at(cache: &Path, name: &str) -> Self {
        Self { root: cache.join("debian").join(name) }
    }

    /// The set, if it was unpacked to its end.
    pub fn find(cache: &Path, name: &str) -> Option<Self> {
        let found = Self::at(cache, name);
        found.root.join(".complete").exists().then_some(found)
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    /// Adds the set's own shared libraries to a command's environment.
    pub fn libraries(&self, command: &mut Command) {
        let Ok(entries) = fs::read_dir(self.root.join("usr/lib")) else { return };
        let mut folders: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir() && path.to_string_lossy().contains("-linux-gnu"))
            .collect();
        folders.push(self.root.join("usr/lib"));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("LD_LIBRARY_PATH", path);
        }
    }

    /// Unpacks packages of the system's own suite, with all that they depend on and the system lacks.
    pub fn of_system(cache: &Path, name: &str, packages: &[&str]) -> Result<Self> {
        if let Some(found) = Self::find(cache, name) {
            return Ok(found);
        }
        need_apt(name)?;
        installing(name);
        retried(
            || {
                // Only a simulation: its `Inst` lines are the packages that are missing.
                let plan = output(
                    Command::new("apt-get")
                        .args(["--simulate", "--no-install-recommends", "install"])
                        .args(packages),
                )?;
                let mut missing: Vec<&str> =
                    plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).collect();
                // Those that the system has installed are wanted here all the same.
                missing.extend(packages.iter().filter(|package| !plan.contains(&format!("Inst {package} "))));
                let mut download = Command::new("apt-get");
                download.args(["-o", "Acquire::Retries=3", "download"]).args(missing);
                Self::unpack(cache, name, &mut download)
            },
            refresh_system_index,
        )
    }

    /// Unpacks packages of another suite from the system's mirror, without their dependencies.
    pub fn of_suite(cache: &Path, name: &str, suite: &str, packages: &[&str]) -> Result<Self> {
        if let Some(found) = Self::find(cache, name) {
            return Ok(found);
        }
        need_apt(name)?;
        installing(name);
        // A private package index: the system's own must never see the other suite.
        let index = cache.join("debian").join(format!("index-{suite}"));
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(index.join(folder))?;
        }
        let sources = index.join("sources.list");
        let mirror = system_mirror()?;
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", index.join("lists").display()),
            format!("Dir::Cache={}", index.join("cache").display()),
            // Mirrors may lag behind the testing suites' short-lived index files.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        let apt = || {
            let mut command = Command::new("apt-get");
            for option in &options {
                command.args(["-o", option]);
            }
            command
        };
        let unpacked = retried(
            || {
                output(apt().arg("update"))?;
                Self::unpack(cache, name, apt().arg("download").args(packages))
            },
            || (),
        )?;
        // The index is several times the size of what was taken by it.
        let _ = fs::remove_dir_all(&index);
        Ok(unpacked)
    }

    /// A whole system of another suite with these packages, to be entered with `chroot`: for programs that need that
    /// suite's libraries. Needs root.
    pub fn root_of_suite(cache: &Path, name: &str, suite: &str, packages: &[&str]) -> Result<Self> {
        if let Some(found) = Self::find(cache, name) {
            return Ok(found);
        }
        if find_program("mmdebstrap").is_none() {
            install_in_system(&["mmdebstrap"])?;
        }
        if output(Command::new("id").arg("-u"))?.trim() != "0" {
            bail!("{name}: only root may enter the system that it runs in");
        }
        installing(name);
        const BASE: &str = "dash,bash,coreutils,sed,grep,procps,base-files,base-passwd,libc-bin,util-linux,init-system-helpers";
        let target = Self::at(cache, name);
        let mirror = system_mirror()?;
        retried(
            || {
                let _ = fs::remove_dir_all(&target.root);
                let mut command = Command::new("mmdebstrap");
                command.args(["--mode=root", "--variant=extract"]);
                // Mirrors may lag behind the testing suites' short-lived index files.
                command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
                command.arg(format!("--include={},{BASE}", packages.join(","))).arg(suite).arg(&target.root);
                output(command.arg(format!("deb [signed-by={KEYRING}] {mirror} {suite} main"))).map(drop)
            },
            || (),
        )?;
        // Not configured, so these are not there; Erlang asks for both.
        fs::write(target.root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(target.root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
        fs::write(target.root.join(".complete"), "")?;
        Ok(target)
    }

    fn unpack(cache: &Path, name: &str, download: &mut Command) -> Result<Self> {
        let target = Self::at(cache, name);
        let _ = fs::remove_dir_all(&target.root);
        let archives = target.root.join("archives");
        fs::create_dir_all(&archives)?;
        output(download.current_dir(&archives))?;
        for entry in fs::read_dir(&archives)? {
            let archive = entry?.path();
            output(Command::new("dpkg").arg("-x").arg(&archive).arg(&target.root))?;
        }
        fs::remove_dir_all(&archives)?;
        fs::write(target.root.join(".complete"), "")?;
        Ok(target)
    }
}

fn need_apt(name: &str) -> Result<()> {
    if find_program("apt-get").is_none() || find_program("dpkg").is_none() {
        bail!(
            "{name}: not on this machine, which is no Debian to take packages from; install it, \
             start Docker, or give an endpoint in the environment"
        );
    }
    Ok(())
}

/// Mirrors fail now and then, and an index that is out of date names files that are gone.
fn retried<T>(mut attempt: impl FnMut() -> Result<T>, refresh: impl Fn()) -> Result<T> {
    let mut last = Error::new("not tried");
    for pause in [0, 2, 5] {
        thread::sleep(Duration::from_secs(pause));
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => last = error,
        }
        refresh();
    }
    Err(last)
}

fn refresh_system_index() {
    // Without root this fails, and the index that is there has to do.
    if let Err(error) = output(Command::new("apt-get").args(["-o", "Acquire::Retries=3", "update"])) {
        note(&format!("apt-get update: {error}"));
    }
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Debian mirror that the system uses.
fn system_mirror() -> Result<String> {
    let of = |path: &str, prefix: &str| {
        let text = fs::read_to_string(path).ok()?;
        text.lines()
            .filter_map(|line| line.strip_prefix(prefix))
            .find_map(|rest| rest.split_whitespace().find(|word| word.contains("://")).map(str::to_owned))
    };
    of("/etc/apt/sources.list.d/debian.sources", "URIs:")
        .or_else(|| of("/etc/apt/sources.list", "deb "))
        .ok_or_else(|| Error::new("the system's package sources name no mirror"))
}

/// Installs packages that would not run from a folder; they bring no services that could start.
pub fn install_in_system(packages: &[&str]) -> Result<()> {
    let wanted = packages.join(" ");
    need_apt(&wanted)?;
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("missing packages, which only root may install: {wanted}");
    }
    installing(&wanted);
    retried(
        || {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command.args(["-o", "Acquire::Retries=3", "install", "--yes", "--no-install-recommends"]);
            output(command.args(packages)).map(drop)
        },
        refresh_system_index,
    )
}
