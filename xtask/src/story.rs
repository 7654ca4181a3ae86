//! The quickstart on every backend: one program, and the same words.

use crate::backends::{BACKENDS, Backend, MEMORY};
use crate::brokers::{self, Endpoint};
use crate::error::{Error, Result, bail};
use crate::examples;
use crate::process::{output_within, say};

pub const ARGUMENTS: &str = "[BACKEND…]";
pub const ABOUT: &str = "    Starts the brokers, runs the quickstart on each backend, prints its story once, and says where it was told
    in other words. Without names on all six.
";

pub fn command(arguments: &[String]) -> Result<()> {
    let known = || std::iter::once(MEMORY).chain(BACKENDS.iter().map(|backend| backend.name));
    if let Some(unknown) = arguments.iter().find(|name| !known().any(|known| known == name.as_str())) {
        bail!("no backend {unknown:?}; known are {}", known().collect::<Vec<_>>().join(", "));
    }
    examples::build()?;
    let first = on_memory()?;
    print!("{first}");
    say(&format!("told by {MEMORY}"));
    for backend in BACKENDS {
        if !arguments.is_empty() && !arguments.iter().any(|name| name == backend.name) {
            continue;
        }
        let endpoints = brokers::up(&[backend.name])?;
        let told = told_as(backend, &first, &endpoints)?;
        say(&format!("told by {}: {told}", backend.name));
    }
    Ok(())
}

/// The story, which needs no broker there.
pub fn on_memory() -> Result<String> {
    tell(&mut examples::program("quickstart")?)
}

/// Tells the story there, which must be the one that is known.
pub fn told_as(backend: &Backend, known: &str, endpoints: &[Endpoint]) -> Result<String> {
    let mut quickstart = examples::program("quickstart")?;
    quickstart.env("BROKER_URL", backend.url(endpoints)?).envs(backend.credentials());
    let told = tell(&mut quickstart)?;
    if let Some((here, there)) = known.lines().zip(told.lines()).find(|(here, there)| here != there) {
        return Err(Error::new(format!("{there:?} instead of {here:?}")));
    }
    if known.lines().count() != told.lines().count() {
        bail!("{} lines instead of {}", told.lines().count(), known.lines().count());
    }
    Ok("word for word".to_owned())
}

/// Without its first line, which names the backend.
fn tell(quickstart: &mut std::process::Command) -> Result<String> {
    let told = output_within(quickstart, examples::LIMIT)?;
    Ok(told.split_once('\n').map_or_else(String::new, |(_, story)| story.to_owned()))
}
