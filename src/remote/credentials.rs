//! Whether there is anything that a bucket may be opened with: in the environment, of a role, or of the machine, which is
//! asked for it at an address that answers nowhere else. To find that out by trying takes minutes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use crate::env;

/// Whether there are credentials for `s3://`.
pub(super) fn for_amazon() -> bool {
    const ROLES: [&str; 4] = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_METADATA_ENDPOINT",
    ];
    env::AWS_ACCESS_KEY_ID.get().is_some()
        || any_set(&ROLES)
        || machine_answers(
            "PUT /latest/api/token HTTP/1.1\r\nhost: 169.254.169.254\r\ncontent-length: 0\r\nconnection: close\r\n\
             x-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
        )
        .unwrap_or(false)
}

/// Whether there are credentials for `gs://`.
pub(super) fn for_google() -> bool {
    /// Accounts, and where the machine is asked that stands for one.
    const NAMES: [&str; 6] = [
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "SERVICE_ACCOUNT",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GCE_METADATA_HOST",
        "GCE_METADATA_ROOT",
        "GCE_METADATA_IP",
    ];
    let of_gcloud =
        |home: String| Path::new(&home).join(".config/gcloud/application_default_credentials.json").exists();
    env::GOOGLE_SERVICE_ACCOUNT.get().is_some()
        || env::GOOGLE_SERVICE_ACCOUNT_KEY.get().is_some()
        || any_set(&NAMES)
        || env::named("HOME").is_some_and(of_gcloud)
        || machine_answers(
            "GET /computeMetadata/v1/instance/id HTTP/1.1\r\nhost: 169.254.169.254\r\nconnection: close\r\n\
             metadata-flavor: Google\r\n\r\n",
        )
        .unwrap_or(false)
}

fn any_set(names: &[&str]) -> bool {
    names.iter().any(|name| env::named(name).is_some())
}

/// Whether this is a machine of a cloud's that gives a sound answer to a request for what it is.
fn machine_answers(request: &str) -> io::Result<bool> {
    const METADATA: ([u8; 4], u16) = ([169, 254, 169, 254], 80);
    const LIMIT: Duration = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&METADATA.into(), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut first = [0; 12];
    stream.read_exact(&mut first)?;
    Ok(first.ends_with(b" 200"))
}
