//! The benchmarks, which are a workspace of their own.

use std::process::Command;

use crate::brokers;
use crate::error::{Context, Result, bail};
use crate::test::root;

pub const ARGUMENTS: &str = "kafka|memory|nats|rabbitmq|redis|sqs [ARGUMENT…]";
pub const ABOUT: &str =
    "    Measures buqueue beside raw clients and peers, interleaved in one run, and prints tables of ratios.
    `--quick` for a first look. Run it on a quiet machine.
";

pub fn command(arguments: &[String]) -> Result<()> {
    let Some((which, rest)) = arguments.split_first() else { bail!("which one? {ARGUMENTS}") };
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
