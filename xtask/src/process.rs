//! Processes that outlive the command: started detached, remembered in pid files, ended by pid.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result, bail};

/// One process of a broker: a Redis Cluster has three, most brokers have one.
pub struct Service {
    pub name: &'static str,
    pub command: Command,
    /// The ports that it will listen on, to tell "taken by somebody else" apart from "does not start".
    pub ports: Vec<u16>,
}

/// A broker's folder of pid files, logs, configuration and data.
pub struct Run {
    pub dir: PathBuf,
}

/// A process, and when it was born: a pid alone may have gone to another process since.
#[derive(PartialEq, Eq)]
struct Identity {
    pid: u32,
    born: String,
}

impl Run {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).context(|| format!("cannot create {}", self.dir.display()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A folder inside, created where it is missing.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// Writes a configuration file anew.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes a configuration file that its process rewrites: an existing one holds state and stays.
    pub fn write_once(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        if path.exists() { Ok(path) } else { self.write(name, text) }
    }

    /// The services that have a live process, in the order of their names.
    pub fn running(&self) -> Vec<String> {
        let mut names = self.recorded();
        names.retain(|name| self.is_running(name));
        names
    }

    /// The services that were started, were not stopped, and have no live process.
    pub fn ended(&self) -> Vec<String> {
        let mut names = self.recorded();
        names.retain(|name| !self.is_running(name));
        names
    }

    /// The services that were started and not stopped, in the order of their names.
    fn recorded(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".pid")?.to_owned()))
            .collect();
        names.sort();
        names
    }

    pub fn is_running(&self, service: &str) -> bool {
        self.identity(service).is_some()
    }

    /// The service's process, if it is alive and still the one that was started.
    fn identity(&self, service: &str) -> Option<Identity> {
        let text = fs::read_to_string(self.dir.join(format!("{service}.pid"))).ok()?;
        let (pid, born) = text.trim().split_once(' ')?;
        let known = Identity { pid: pid.parse().ok()?, born: born.to_owned() };
        (birth(known.pid).as_ref() == Some(&known.born)).then_some(known)
    }

    /// Starts a service in a session of its own, unless it runs already.
    pub fn start(&self, service: Service) -> Result<()> {
        let Service { name, mut command, ports } = service;
        if self.is_running(name) {
            return Ok(());
        }
        // What the service said when it ran last explains nothing any more.
        let log = self.log(name);
        let _ = fs::remove_file(&log);
        for port in ports {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                bail!("port {port} is taken by a process that this command did not start");
            }
        }
        let out = File::create(&log).context(|| format!("cannot create {}", log.display()))?;
        command = in_new_session(&command);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context(|| format!("cannot start {program}"))?;
        let pid = child.id();
        // A process that is gone by now has no birth: the readiness wait will find it dead and show its log.
        let born = birth(pid).unwrap_or_else(|| "gone".to_owned());
        self.write(&format!("{name}.pid"), &format!("{pid} {born}\n"))?;
        Ok(())
    }

    /// Ends a service: politely with a deadline, or at once where `hard`. Its whole process group goes.
    pub fn stop(&self, service: &str, hard: bool) -> Result<()> {
        if let Some(known) = self.identity(service) {
            if !hard {
                signal("TERM", &known.pid.to_string());
                let deadline = Instant::now() + Duration::from_secs(20);
                while self.is_running(service) && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(20));
                }
            }
            let group = format!("-{}", known.pid);
            // One that waits for its disk ends when that has answered.
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                // Also after a polite end: helpers of the process may be left in its group. And again
                // until it is gone: one that has only just been started may have no group yet.
                signal("KILL", &group);
                if !self.is_running(service) {
                    break;
                }
                if Instant::now() > deadline {
                    bail!("{service} (pid {}) does not end", known.pid);
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = fs::remove_file(self.dir.join(format!("{service}.pid")));
        Ok(())
    }

    fn log(&self, service: &str) -> PathBuf {
        self.dir.join(format!("{service}.log"))
    }

    /// Whether a process gave up for a port that it could not have.
    pub fn a_port_was_taken(&self) -> bool {
        self.logs().iter().any(|(service, log)| {
            let text = tail(log, 30).to_lowercase();
            !self.is_running(service)
                && ["address already in use", "eaddrinuse", "bindexception"]
                    .iter()
                    .any(|sign| text.contains(sign))
        })
    }

    /// The last lines of the logs of those services that ended; of all where none did.
    pub fn log_tails(&self) -> String {
        let mut logs = self.logs();
        if logs.iter().any(|(service, _)| !self.is_running(service)) {
            logs.retain(|(service, _)| !self.is_running(service));
        }
        let mut text = String::new();
        for (_, log) in logs {
            text.push_str(&format!("\n--- {}\n{}", log.display(), tail(&log, 15)));
        }
        text
    }

    /// Every service that was ever started, with its log.
    fn logs(&self) -> Vec<(String, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut logs: Vec<(String, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let service = path.file_name()?.to_str()?.strip_suffix(".log")?.to_owned();
                Some((service, path))
            })
            .collect();
        logs.sort();
        logs
    }
}

/// The last `lines` lines of a file.
fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(8192)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The same command, led by `setsid` where that exists, so that a closed terminal or a
/// supervisor that ends this command's process group does not take the broker with it.
fn in_new_session(command: &Command) -> Command {
    // `setsid` executes the program in place (our child never leads a group), so the pid stays.
    let mut detached = match find_program("setsid") {
        Some(setsid) => {
            let mut detached = Command::new(setsid);
            detached.arg(command.get_program());
            detached
        }
        None => {
            let mut detached = Command::new(command.get_program());
            detached.process_group(0);
            detached
        }
    };
    detached.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => detached.env(key, value),
            None => detached.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        detached.current_dir(dir);
    }
    detached
}

/// When a live process was started, in whatever form the system gives it; none for a dead one.
fn birth(pid: u32) -> Option<String> {
    if Path::new("/proc/self/stat").exists() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold blanks: count the fields from behind it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let state = *fields.first()?;
        // Killed but not collected by its parent: dead as soon as its last thread is, not before.
        // Until then the threads hold the ports.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        if state == "X" || (state == "Z" && threads <= 1) {
            return None;
        }
        return fields.get(19).map(|ticks| (*ticks).to_owned());
    }
    let output = Command::new("ps").args(["-o", "lstart=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().replace(' ', "_");
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn signal(name: &str, target: &str) {
    let _ = Command::new("kill")
        .args(["-s", name, "--", target])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
}

/// Looks a program up on the PATH and in the folders for servers, which ordinary users lack on theirs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Runs a command to its end and returns its standard output; a failure shows all that it said.
pub fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().context(|| format!("cannot run `{line}`"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("`{line}` ended with {status}\n{}{}", stdout, String::from_utf8_lossy(&stderr));
    }
    Ok(stdout)
}

/// What a program prints, which must end well and in time; what it says of its failures goes where ours does. One that hangs is
/// ended, and told with what it had printed.
pub fn output_within(command: &mut Command, limit: Duration) -> Result<String> {
    let line = line_of(command);
    let mut child = (command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn())
        .context(|| format!("cannot run `{line}`"))?;
    let Some(mut stdout) = child.stdout.take() else { bail!("`{line}` has no output") };
    let reader = thread::spawn(move || {
        let mut printed = Vec::new();
        let _ = stdout.read_to_end(&mut printed);
        String::from_utf8_lossy(&printed).into_owned()
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            None => {
                child.kill()?;
                child.wait()?;
                break None;
            }
        }
    };
    let printed = reader.join().map_err(|_| Error::new("cannot read what was printed"))?;
    match status {
        Some(status) if status.success() => Ok(printed),
        Some(status) => bail!("`{line}` ended with {status}, after {:?}", printed.trim_end()),
        None => bail!("`{line}` was not done within {} s, after {:?}", limit.as_secs(), printed.trim_end()),
    }
}

/// As [`output`], with `input` given to the command's standard input.
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    let line = line_of(command);
    let mut child: Child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| format!("cannot run `{line}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("`{line}` ended with {status}\n{}{}", stdout, String::from_utf8_lossy(&stderr));
    }
    Ok(stdout)
}

fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Whether a command ends well within a time; one that hangs (a daemon that does not answer) is ended.
pub fn succeeds_within(command: &mut Command, limit: Duration) -> bool {
    let Ok(mut child) = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    else {
        return false;
    };
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// Repeats `attempt` until it succeeds; after `limit` returns its last error.
pub fn retry_for<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Prints a whole line at once, also when several brokers come up in parallel.
pub fn say(line: &str) {
    static OUT: Mutex<()> = Mutex::new(());
    let _guard = OUT.lock();
    // A reader that had enough (`| head`) is no reason to panic.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// As [`say`], to standard error: for progress that is not the command's result.
pub fn note(line: &str) {
    eprintln!("{line}");
}

/// Whether nothing may be skipped, as `CI` in the environment says.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(name: &'static str) -> Service {
        let mut command = Command::new("sleep");
        command.arg("60");
        Service { name, command, ports: Vec::new() }
    }

    fn run(name: &str) -> Result<Run> {
        let run = Run::new(std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id())));
        run.create()?;
        Ok(run)
    }

    #[test]
    fn a_service_runs_until_it_is_stopped() -> Result<()> {
        let run = run("stop")?;
        run.start(sleeper("polite"))?;
        run.start(sleeper("hard"))?;
        assert_eq!(run.running(), ["hard", "polite"]);
        run.stop("polite", false)?;
        run.stop("hard", true)?;
        assert!(run.running().is_empty());
        fs::remove_dir_all(&run.dir)?;
        Ok(())
    }

    #[test]
    fn a_pid_that_went_to_another_process_is_left_alone() -> Result<()> {
        let run = run("pid")?;
        run.start(sleeper("ours"))?;
        let ours = run.path("ours.pid");
        let text = fs::read_to_string(&ours)?;
        let pid = text.split(' ').next().unwrap_or_default();
        run.write("other.pid", &format!("{pid} 1\n"))?;
        assert!(!run.is_running("other"));
        run.stop("other", true)?;
        assert!(run.is_running("ours"));
        run.stop("ours", true)?;
        fs::remove_dir_all(&run.dir)?;
        Ok(())
    }
}
