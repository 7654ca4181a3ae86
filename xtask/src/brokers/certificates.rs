//! Certificates for the servers that speak TLS, and for a client of those that ask for one.

use std::process::Command;

use crate::error::Result;
use crate::process::{Run, output};

/// Whose the client's certificate is.
pub const CLIENT: &str = "buqueue-client";

/// A certificate authority of our own, `ca.crt`; of it `server.crt`, for this machine's loopback, and `client.crt`; and
/// `stranger.crt`, which is of no authority that anybody knows. Their keys lie beside them. What an older version has made
/// stays.
pub fn make(run: &Run) -> Result<()> {
    let lacks = |name: &str| !run.path(&format!("{name}.crt")).exists();
    if lacks("server") {
        of_itself(run, "ca", "buqueue test CA", &["-addext", "keyUsage=critical,keyCertSign,cRLSign"])?;
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth";
        signed(run, "server", "localhost", names)?;
    }
    if lacks("client") {
        signed(run, "client", CLIENT, "extendedKeyUsage=clientAuth")?;
    }
    if lacks("stranger") {
        of_itself(run, "stranger", "stranger", &["-addext", "extendedKeyUsage=clientAuth"])?;
    }
    Ok(())
}

/// How a key is made, which is written in PKCS#8.
const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

fn openssl(run: &Run) -> Command {
    let mut command = Command::new("openssl");
    command.current_dir(&run.dir);
    command
}

fn of_itself(run: &Run, name: &str, common_name: &str, extensions: &[&str]) -> Result<()> {
    let subject = format!("/CN={common_name}");
    let mut making = openssl(run);
    making.args(["req", "-x509", "-days", "3650", "-subj", &subject]).args(KEY).args(extensions);
    output(making.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")]))?;
    Ok(())
}

fn signed(run: &Run, name: &str, common_name: &str, extensions: &str) -> Result<()> {
    let file = |kind: &str| format!("{name}.{kind}");
    run.write(&file("ext"), &format!("{extensions}\nbasicConstraints=CA:FALSE\n"))?;
    let subject = format!("/CN={common_name}");
    let mut request = openssl(run);
    request.args(["req", "-subj", &subject]).args(KEY);
    output(request.args(["-keyout", &file("key"), "-out", &file("csr")]))?;
    let mut signing = openssl(run);
    signing.args([
        "x509",
        "-req",
        "-in",
        &file("csr"),
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
    ]);
    signing.args(["-days", "3650", "-extfile", &file("ext"), "-out", &file("crt")]);
    output(&mut signing)?;
    Ok(())
}
