//! The project's own commands, run as `cargo xtask COMMAND`.

mod api;
mod backends;
mod bench;
mod brokers;
mod error;
mod examples;
mod features;
mod minimal;
mod package;
mod process;
mod story;
mod test;
mod weight;
mod workspace;

use std::process::ExitCode;

use error::Result;

/// One line of the command table; a new command is one more entry in [`COMMANDS`].
struct Command {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const COMMANDS: &[Command] = &[
    Command { name: "test", arguments: test::ARGUMENTS, about: test::ABOUT, run: test::command },
    Command { name: "brokers", arguments: brokers::ARGUMENTS, about: brokers::ABOUT, run: brokers::command },
    Command { name: "story", arguments: story::ARGUMENTS, about: story::ABOUT, run: story::command },
    Command {
        name: "examples",
        arguments: examples::ARGUMENTS,
        about: examples::ABOUT,
        run: examples::command,
    },
    Command { name: "bench", arguments: bench::ARGUMENTS, about: bench::ABOUT, run: bench::command },
    Command {
        name: "features",
        arguments: features::ARGUMENTS,
        about: features::ABOUT,
        run: features::command,
    },
    Command { name: "package", arguments: package::ARGUMENTS, about: package::ABOUT, run: package::command },
    Command { name: "api", arguments: api::ARGUMENTS, about: api::ABOUT, run: api::command },
    Command {
        name: "minimal-versions",
        arguments: minimal::ARGUMENTS,
        about: minimal::ABOUT,
        run: minimal::command,
    },
    Command { name: "weight", arguments: weight::ARGUMENTS, about: weight::ABOUT, run: weight::command },
];

fn main() -> ExitCode {
    if let Some(code) = api::stand_in() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = arguments.split_first() else {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    };
    if matches!(name.as_str(), "help" | "-h" | "--help") {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("unknown command `{name}`\n\n{}", usage());
        return ExitCode::from(2);
    };
    match (command.run)(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask COMMAND\n");
    for command in COMMANDS {
        text.push_str(&format!("\n{} {}\n{}\n", command.name, command.arguments, command.about));
    }
    text
}
