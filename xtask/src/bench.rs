//! The benchmarks, which are a workspace of their own.

use std::process::Command;

use crate::brokers;
use crate::error::{Context, Result, bail};
use crate::workspace::root;

pub const ARGUMENTS: &str = "kafka|memory|nats|observe|rabbitmq|redis|sqs [ARGUMENT…]";
pub const ABOUT: &str =
    "    Measures buqueue beside raw clients and peers, interleaved in one run, and prints tables of ratios.
    `--quick` for a first look. Run it on a quiet machine.
";

pub fn command(arguments: &[String]) -> Result<()> {
    let Some((which, rest)) = arguments.split_first() else { bail!("which one? {ARGUMENTS}") };
    if which == "observe" {
        return observe::run(rest);
    }
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["run", "--release", "--quiet", "--bin", which, "--"]).args(rest);
    command.current_dir(root().join("benches"));
    match which.as_str() {
        "memory" => {}
        broker @ ("kafka" | "nats" | "rabbitmq" | "redis" | "sqs") => {
            // The faster of the two emulators; neither tells how fast SQS is.
            let broker = if broker == "sqs" { "sqs-localstack" } else { broker };
            command.envs(brokers::up(&[broker])?.into_iter().map(|endpoint| {
                let variable = endpoint.variable.trim_end_matches("_FIFO");
                (variable, endpoint.value)
            }));
        }
        other => bail!("no benchmark {other:?}; {ARGUMENTS}"),
    }
    let status = command.status().context(|| format!("cannot start the benchmark {which}"))?;
    if !status.success() {
        bail!("the benchmark {which} ended with {status}");
    }
    Ok(())
}

/// What the features `tracing` and `metrics` cost a message. They are on or off at compile time, so there are two programs,
/// and one process for each row and round.
mod observe {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use crate::error::{Context, Result, bail};
    use crate::process::{output, say};
    use crate::workspace::{cargo, root};

    /// How each row is named, whether the features are on, and who listens.
    const ROWS: &[(&str, bool, &str)] = &[
        ("features off", false, "nobody"),
        ("on, nobody listens", true, "nobody"),
        ("on, metrics to the SDK", true, "metrics"),
        ("on, spans to the SDK", true, "spans"),
        ("on, both to the SDK", true, "both"),
    ];

    /// `[--quick] [--against PROGRAM]`: another build of the program without features, to compare with.
    pub fn run(arguments: &[String]) -> Result<()> {
        let (mut rounds, mut against) = (15, None);
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => rounds = 5,
                "--against" => against = arguments.next().map(PathBuf::from),
                other => bail!("unknown option `{other}`"),
            }
        }
        let folder = root().join("benches/observe");
        let (off, on) = (build(&folder, false)?, build(&folder, true)?);
        let mut rows: Vec<(&str, &Path, &str)> = (ROWS.iter())
            .map(|(name, is_on, listener)| (*name, if *is_on { on.as_path() } else { &off }, *listener))
            .collect();
        if let Some(against) = &against {
            rows.push(("the other program", against, "nobody"));
        }
        let mut seen: BTreeMap<usize, Vec<(u64, u64)>> = BTreeMap::new();
        for round in 0..rounds {
            for turn in 0..rows.len() {
                let at = (turn + round) % rows.len();
                let (_, program, listener) = rows[at];
                let said = output(Command::new(program).arg(listener))?;
                let figures: Vec<u64> =
                    said.split_whitespace().filter_map(|text| text.parse().ok()).collect();
                let [send, receive] = figures[..] else { bail!("{} said {said:?}", program.display()) };
                seen.entry(at).or_default().push((send, receive));
            }
        }
        say("| | send, ns | receive + ack, ns |");
        say("|---|---|---|");
        for (at, figures) in &seen {
            let (sends, receives): (Vec<u64>, Vec<u64>) = figures.iter().copied().unzip();
            say(&format!("| {} | {} | {} |", rows[*at].0, spread(sends), spread(receives)));
        }
        Ok(())
    }

    fn build(folder: &Path, on: bool) -> Result<PathBuf> {
        let target = folder.join(if on { "target/on" } else { "target/off" });
        let mut build = cargo(&["build", "--release", "--quiet"]);
        build.current_dir(folder).env("CARGO_TARGET_DIR", &target);
        if on {
            build.args(["--features", "on"]);
        }
        let status = build.status().context(|| "cannot build the benchmark observe".to_owned())?;
        if !status.success() {
            bail!("the benchmark observe does not build");
        }
        Ok(target.join("release/buqueue-bench-observe"))
    }

    /// The median, and from where to where.
    fn spread(mut figures: Vec<u64>) -> String {
        figures.sort_unstable();
        let (first, last) = (figures.first().copied().unwrap_or(0), figures.last().copied().unwrap_or(0));
        format!("{} ({first} to {last})", figures.get(figures.len() / 2).copied().unwrap_or(0))
    }
}
