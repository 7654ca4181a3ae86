//! What each feature of the facade brings with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::features;
use crate::process::{note, output, say};
use crate::test::cargo;

pub const ARGUMENTS: &str = "[--time] [FEATURE…]";
pub const ABOUT: &str =
    "    Prints how many crates the facade takes, without features, with each alone, and with all.

    --time   also builds each from nothing, in a folder of its own; for a quiet machine
";

pub fn command(arguments: &[String]) -> Result<()> {
    let (options, names): (Vec<String>, Vec<String>) =
        arguments.iter().cloned().partition(|argument| argument == "--time");
    let timed = !options.is_empty();
    let mut rows: Vec<(String, String)> = (features::asked_for(&names)?.into_iter())
        .map(|feature| (features::name_of(&feature).to_owned(), feature))
        .collect();
    if names.is_empty() {
        rows.push(("all".to_owned(), features::all()?.join(",")));
    }
    if timed {
        // What is measured is the compiler, not the network.
        output(&mut cargo(&["fetch", "--locked"]))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        say(&format!("Built from nothing by the dev profile on {cores} cores.\n"));
    }
    let (head, line) = if timed { (" time, s |", "---|") } else { ("", "") };
    say(&format!("| feature | crates | and only to build them |{head}"));
    say(&format!("|---|---|---|{line}"));
    for (name, features) in rows {
        let linked = crates(&features, "normal")?.len();
        let built = crates(&features, "normal,build")?.len();
        let mut row = format!("| {name} | {linked} | {} |", built.saturating_sub(linked));
        if timed {
            note(&format!("== {name}"));
            row.push_str(&format!(" {:.0} |", cold(&features)?.as_secs_f64()));
        }
        say(&row);
    }
    Ok(())
}

/// The crates that the facade takes with these features, as name and version, our own included.
pub fn crates(features: &str, edges: &str) -> Result<BTreeSet<(String, String)>> {
    let mut tree = cargo(&["tree", "-p", "buqueue", "-e", edges, "--prefix", "none", "--format", "{p}"]);
    tree.args(["--no-default-features", "--features", features]);
    Ok(parsed(&output(&mut tree)?))
}

/// Lines as `name v1.2.3 (proc-macro)`, some of them more than once.
fn parsed(tree: &str) -> BTreeSet<(String, String)> {
    let crates = tree.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    });
    crates.collect()
}

/// How long a build takes that finds nothing done.
fn cold(features: &str) -> Result<Duration> {
    let folder = std::env::temp_dir().join(format!("buqueue-weight-{}", std::process::id()));
    let took = build(features, &folder);
    let _ = fs::remove_dir_all(&folder);
    took
}

fn build(features: &str, folder: &Path) -> Result<Duration> {
    let mut build = cargo(&["build", "--quiet", "--offline", "-p", "buqueue", "--no-default-features"]);
    build.args(["--features", features, "--target-dir"]).arg(folder);
    let start = Instant::now();
    output(&mut build)?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_counts_once_and_two_versions_twice() {
        let tree = "buqueue v0.1.0 (/src)\nsyn v2.0.1\nserde_derive v1.0.0 (proc-macro)\nsyn v2.0.1 (*)\nsyn v1.0.9\n";
        assert_eq!(parsed(tree).len(), 4);
    }
}
