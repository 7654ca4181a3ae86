//! Java programs, as folders of jars that Maven copies together.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::installing;
use super::packages::install_in_system;
use crate::error::{Result, bail};
use crate::process::{find_program, output};

/// Fills `.brokers/NAME/libs` with all that the assets' `pom.xml` asks for, and returns that folder.
pub fn libraries(cache: &Path, name: &str, pom: &str) -> Result<PathBuf> {
    let folder = cache.join(name);
    let libs = folder.join("libs");
    // The pom itself marks completeness: another version in it means another folder of jars.
    let done = folder.join("pom.xml");
    if fs::read_to_string(&done).is_ok_and(|text| text == pom) {
        return Ok(libs);
    }
    installing(name);
    need_java()?;
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let wanted = folder.join("wanted.xml");
    fs::write(&wanted, pom)?;
    let copy = || {
        output(
            Command::new("mvn")
                .args(["--batch-mode", "--quiet", "--update-snapshots", "--file"])
                .arg(&wanted)
                .arg("org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies")
                .arg("-DincludeScope=runtime")
                .arg(format!("-DoutputDirectory={}", libs.display())),
        )
    };
    // What came through stays in Maven's own cache, so a second try has little left to fail at.
    // (Update-snapshots, above, also makes it forget failures that it remembers.)
    copy().or_else(|_| copy())?;
    fs::rename(&wanted, &done)?;
    Ok(libs)
}

/// `java` with a folder of jars on its class path.
pub fn java(libs: &Path) -> Command {
    let mut command = Command::new("java");
    command.arg("-cp").arg(libs.join("*"));
    command
}

fn need_java() -> Result<()> {
    if find_program("mvn").is_none() || find_program("java").is_none() {
        install_in_system(&["default-jre-headless", "maven"])?;
    }
    let version = output(Command::new("java").arg("--version"))?;
    let major =
        version.split_whitespace().nth(1).and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if major.is_none_or(|major| major < 17) {
        bail!("Java 17 or newer is needed; `java --version` says {}", version.trim());
    }
    Ok(())
}
