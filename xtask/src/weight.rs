//! What each feature of the facade brings with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Result, bail};
use crate::features;
use crate::process::{note, output, say};
use crate::workspace::cargo;

pub const ARGUMENTS: &str = "[--time] [FEATURE…]";
pub const ABOUT: &str =
    "    Prints how many crates the facade takes, without features, with each alone, and with all.

    --time   also builds each from nothing, in a folder of its own: how long the processors worked, which a neighbour
             changes little, and how long it took
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
    let (head, line) = if timed { (" processor, s | time, s |", "---|---|") } else { ("", "") };
    say(&format!("| feature | crates | and only to build them |{head}"));
    say(&format!("|---|---|---|{line}"));
    for (name, features) in rows {
        let linked = crates(&features, "normal")?.len();
        let built = crates(&features, "normal,build")?.len();
        let mut row = format!("| {name} | {linked} | {} |", built.saturating_sub(linked));
        if timed {
            note(&format!("== {name}"));
            let cold = cold(&features)?;
            row.push_str(&format!(" {:.0} | {:.0} |", cold.processor.as_secs_f64(), cold.took.as_secs_f64()));
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

/// What a build costs.
struct Cost {
    processor: Duration,
    took: Duration,
}

/// What a build costs that finds nothing done.
fn cold(features: &str) -> Result<Cost> {
    let folder = std::env::temp_dir().join(format!("buqueue-weight-{}", std::process::id()));
    let cost = build(features, &folder);
    let _ = fs::remove_dir_all(&folder);
    cost
}

fn build(features: &str, folder: &Path) -> Result<Cost> {
    let mut build = cargo(&["build", "--quiet", "--offline", "-p", "buqueue", "--no-default-features"]);
    build.args(["--features", features, "--target-dir"]).arg(folder);
    let (before, start) = (processor()?, Instant::now());
    output(&mut build)?;
    Ok(Cost { processor: processor()?.saturating_sub(before), took: start.elapsed() })
}

/// How long the processors have worked for the programs that this one has started, and that have ended.
fn processor() -> Result<Duration> {
    worked(&fs::read_to_string("/proc/self/stat")?)
}

/// `cutime` and `cstime` of proc(5): the 16th and the 17th field, in hundredths of a second. The second is the program's
/// name in parentheses, which may have blanks.
fn worked(stat: &str) -> Result<Duration> {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: Vec<u64> = fields.skip(13).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => Ok(Duration::from_millis((user + system) * 10)),
        _ => bail!("/proc/self/stat is not as it should be: {stat:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_counts_once_and_two_versions_twice() {
        let tree = "buqueue v0.1.0 (/src)\nsyn v2.0.1\nserde_derive v1.0.0 (proc-macro)\nsyn v2.0.1 (*)\nsyn v1.0.9\n";
        assert_eq!(parsed(tree).len(), 4);
    }

    #[test]
    fn what_children_worked_is_read_behind_the_name() {
        let stat = "77 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 250 50 20 0";
        assert_eq!(worked(stat).ok(), Some(Duration::from_secs(3)));
        assert!(worked("77 (a) S 1").is_err());
    }
}
