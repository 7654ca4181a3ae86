//! Certificates for the servers that speak TLS.

use std::process::Command;

use crate::error::Result;
use crate::process::{Run, output};

/// A certificate authority of our own, and a server certificate of it for this machine's loopback.
pub fn make(run: &Run) -> Result<()> {
    if run.path("server.crt").exists() {
        return Ok(());
    }
    let openssl = || {
        let mut command = Command::new("openssl");
        command.current_dir(&run.dir);
        command
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    run.write(
        "server.ext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n",
    )?;
    output(
        openssl().args(["req", "-x509", "-days", "3650", "-subj", "/CN=buqueue test CA"]).args(key).args([
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]),
    )?;
    output(openssl().args(["req", "-subj", "/CN=localhost"]).args(key).args([
        "-keyout",
        "server.key",
        "-out",
        "server.csr",
    ]))?;
    output(
        openssl().args(["x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key"]).args([
            "-CAcreateserial",
            "-days",
            "3650",
            "-extfile",
            "server.ext",
            "-out",
            "server.crt",
        ]),
    )?;
    Ok(())
}
