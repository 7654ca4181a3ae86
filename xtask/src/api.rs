//! What each published crate shows to others, held against the listings in `api/`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::error::{Context, Error, Result, bail};
use crate::package::publish_order;
use crate::process::{output, say, succeeds_within};
use crate::workspace::{cargo, root, target};

pub const ARGUMENTS: &str = "[--bless]";
pub const ABOUT: &str =
    "    Compares the public items of every crate that is published, with all features, to the listings in
    `api/`. A difference is a failure and is shown.

    --bless   writes the listings instead
";

/// The format of rustdoc's JSON that the crate in `xtask/api` reads. Each Rust writes one.
const FORMAT: u32 = 57;

/// A Rust that writes it; the workflow in `.github` makes sure that it is there.
const RUST: &str = "1.95.0";

/// What the compiler makes of `derive(PartialEq)`; nobody can name it on stable.
const COMPANION: &str = "impl core::marker::StructuralPartialEq for ";

/// Set for this program where cargo takes it for rustdoc: the rustdoc to become.
const REAL: &str = "BUQUEUE_XTASK_RUSTDOC";

pub fn command(arguments: &[String]) -> Result<()> {
    let bless = match arguments {
        [] => false,
        [option] if option == "--bless" => true,
        [other, ..] => bail!("unknown option `{other}`"),
    };
    if let Some(why) = unreadable()? {
        bail!("{why}");
    }
    if !bless {
        return compare().map(|same| say(&same));
    }
    for (name, listing) in listings()? {
        let file = file(&name);
        fs::create_dir_all(file.parent().unwrap_or(root()))?;
        fs::write(&file, &listing).context(|| format!("cannot write {}", file.display()))?;
        say(&format!("{name}: {} lines", listing.lines().count()));
    }
    Ok(())
}

/// Why this Rust cannot make the listings, where it cannot.
pub fn unreadable() -> Result<Option<String>> {
    let folder = target()?.join("api");
    fs::create_dir_all(&folder)?;
    let source = folder.join("empty.rs");
    fs::write(&source, "")?;
    let mut rustdoc = rustdoc();
    rustdoc.env("RUSTC_BOOTSTRAP", "1").args(["-Z", "unstable-options", "--output-format", "json"]);
    output(rustdoc.arg("--out-dir").arg(&folder).arg(&source))?;
    let format = format_of(&fs::read_to_string(folder.join("empty.json"))?);
    Ok((format != Some(FORMAT)).then(|| {
        let format = format.map_or_else(|| "unknown".to_owned(), |format| format.to_string());
        format!("this rustdoc writes format {format}, and {FORMAT} is read, as of Rust {RUST}")
    }))
}

/// Why the crates that read the format are not here, where they are not: they are in no other lock file of ours.
pub fn unavailable() -> Option<String> {
    let lister = root().join("xtask").join("api").join("Cargo.toml");
    let mut fetch = cargo(&["fetch", "--locked", "--manifest-path"]);
    let fetched = succeeds_within(fetch.arg(lister), Duration::from_secs(60));
    (!fetched).then(|| "the crates that list it cannot be fetched".to_owned())
}

/// The version of the format, as the JSON names it.
fn format_of(json: &str) -> Option<u32> {
    let (_, rest) = json.rsplit_once("\"format_version\":")?;
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Says how much is the same, or shows what is not.
pub fn compare() -> Result<String> {
    let mut lines = 0;
    let mut differences = String::new();
    for (name, now) in listings()? {
        let file = file(&name);
        let known = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
        let changed = difference(&known, &now);
        lines += now.lines().count();
        if !changed.is_empty() {
            differences.push_str(&format!("\napi/{name}.txt\n{}", changed.join("\n")));
        }
    }
    if !differences.is_empty() {
        bail!(
            "the public API is not what `api/` says; `cargo xtask api --bless` if it should be{differences}"
        );
    }
    Ok(format!("{lines} lines"))
}

/// The lines that only one of two listings has, with what they became beside what they were.
fn difference(known: &str, now: &str) -> Vec<String> {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    known.lines().for_each(|line| *counts.entry(line).or_default() -= 1);
    now.lines().for_each(|line| *counts.entry(line).or_default() += 1);
    let changed = counts.into_iter().filter(|(_, count)| *count != 0);
    changed.map(|(line, count)| format!("{}{line}", if count < 0 { '-' } else { '+' })).collect()
}

fn file(name: &str) -> PathBuf {
    root().join("api").join(format!("{name}.txt"))
}

/// The listing of every published crate, by name.
fn listings() -> Result<BTreeMap<String, String>> {
    let target = target()?;
    document(&target)?;
    let lister = root().join("xtask").join("api").join("Cargo.toml");
    let mut listings = BTreeMap::new();
    for name in publish_order()? {
        let json = json(&target, &name);
        let mut list = cargo(&["run", "--quiet", "--locked", "--manifest-path"]);
        list.arg(&lister).arg("--target-dir").arg(&target).arg("--").arg(&json);
        let listing = output(&mut list)?;
        // The crates come behind those that they re-export.
        let lines = listing.lines().filter(|line| !line.starts_with(COMPANION));
        let listing = lines.flat_map(|line| expanded(line, &listings)).collect::<Vec<_>>();
        listings.insert(name, listing.join("\n") + "\n");
    }
    Ok(listings)
}

/// A re-export of all that another crate of ours has, as a line for each of its items; any other line as it is.
fn expanded(line: &str, listings: &BTreeMap<String, String>) -> Vec<String> {
    let glob = (|| {
        let (place, origin) = line.strip_prefix("pub use ")?.strip_suffix("::*>>")?.split_once("<<")?;
        Some((place, origin, listings.get(&origin.replace('_', "-"))?))
    })();
    let Some((place, origin, listing)) = glob else { return vec![line.to_owned()] };
    let names = listing.lines().filter_map(|item| top_level(item, origin));
    let mut uses: Vec<String> = names.map(|name| format!("pub use {place}{name} from {origin}")).collect();
    uses.sort();
    uses.dedup();
    uses
}

/// The name of an item that stands at the root of its crate.
fn top_level<'a>(item: &'a str, origin: &str) -> Option<&'a str> {
    // An attribute may come first.
    let (attributes, declared) = item.split_once("pub ")?;
    if !attributes.is_empty() && !attributes.starts_with("#[") {
        return None;
    }
    let (_, path) = declared.split_once(&format!("{origin}::"))?;
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    let (name, rest) = path.split_at(end);
    (!rest.starts_with("::")).then_some(name)
}

/// Has rustdoc write its JSON. This needs what is unstable, and to allow it for the whole build would have
/// every dependency that asks for it built anew; so this program stands in for rustdoc, and allows it there.
fn document(target: &Path) -> Result<()> {
    for name in publish_order()? {
        // Else one that is left from another time would be taken for the answer.
        let _ = fs::remove_file(json(target, &name));
    }
    let mut doc = cargo(&["doc", "--workspace", "--lib", "--all-features", "--no-deps", "--quiet"]);
    doc.env(REAL, rustdoc().get_program()).env("RUSTDOC", env::current_exe()?);
    doc.env("RUSTDOCFLAGS", "-Z unstable-options --output-format json");
    output(&mut doc).map(drop)
}

fn json(target: &Path, name: &str) -> PathBuf {
    target.join("doc").join(format!("{}.json", name.replace('-', "_")))
}

fn rustdoc() -> Command {
    Command::new(env::var_os("RUSTDOC").unwrap_or_else(|| "rustdoc".into()))
}

/// Becomes rustdoc where cargo takes this program for it, and returns only where it cannot.
pub fn stand_in() -> Option<ExitCode> {
    let mut rustdoc = Command::new(env::var_os(REAL)?);
    let error: Error = rustdoc.args(env::args_os().skip(1)).env("RUSTC_BOOTSTRAP", "1").exec().into();
    eprintln!("error: cannot run rustdoc: {error}");
    Some(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_shown() {
        let known = "pub fn a::b()\npub fn a::c()\npub fn a::d()\n";
        let now = "pub fn a::d()\npub fn a::b(u8)\npub fn a::c()\n";
        assert_eq!(difference(known, now), ["-pub fn a::b()", "+pub fn a::b(u8)"]);
        assert!(difference(known, known).is_empty());
    }

    #[test]
    fn the_last_version_named_is_that_of_the_format() {
        assert_eq!(
            format_of("{\"docs\":\"\\\"format_version\\\":1\",\"format_version\":57,\"target\":{}}"),
            Some(57)
        );
        assert_eq!(format_of("{}"), None);
    }

    #[test]
    fn a_re_export_of_everything_names_everything() {
        let core = "pub mod a_core\npub use a_core::Q\n#[non_exhaustive] pub struct a_core::S\npub a_core::S::field: u8\n\
                    pub fn a_core::f(a_core::S)\nimpl core::clone::Clone for a_core::S\n";
        let known = BTreeMap::from([("a-core".to_owned(), core.to_owned())]);
        assert_eq!(
            expanded("pub use a::m::<<a_core::*>>", &known),
            ["pub use a::m::Q from a_core", "pub use a::m::S from a_core", "pub use a::m::f from a_core"]
        );
        assert_eq!(expanded("pub use a::<<b::*>>", &known), ["pub use a::<<b::*>>"]);
    }
}
