//! The crates with the oldest versions of what they depend on.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Context, Result, bail};
use crate::package::publish_order;
use crate::process::{note, output, say};
use crate::workspace::{cargo, root, target, without_warnings};

pub const ARGUMENTS: &str = "";
pub const ABOUT: &str =
    "    Checks every crate that is published, with all features, with the oldest versions that it accepts of
    what it depends on itself.
";

pub fn command(arguments: &[String]) -> Result<()> {
    if let Some(other) = arguments.first() {
        bail!("unknown argument `{other}`");
    }
    let target = target()?;
    // The lock file here is not to change.
    let copy = target.join("minimal-versions");
    copy_to(&copy)?;
    note("== versions");
    // Only this flag is unstable; what it chooses is built by the Rust that is here.
    let mut update = cargo(&["update", "--quiet", "-Z", "direct-minimal-versions"]);
    output(update.current_dir(&copy).env("RUSTC_BOOTSTRAP", "1"))?;
    note("== check");
    let mut check = cargo(&["check", "--locked", "--all-features", "--target-dir"]);
    check.arg(&target).args(publish_order()?.iter().flat_map(|name| ["-p", name])).current_dir(&copy);
    without_warnings(check)?;
    say("ok");
    Ok(())
}

/// Copies what is, or could be, committed.
fn copy_to(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let mut list = Command::new("git");
    list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    for file in output(&mut list)?.split_terminator('\0') {
        let (from, to) = (root().join(file), folder.join(file));
        // One that is deleted is still listed.
        if from.is_file() {
            fs::create_dir_all(to.parent().unwrap_or(folder))?;
            fs::copy(&from, &to).context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}
