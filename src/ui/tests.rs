//! The server asked as a browser and as a stranger would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::store::Store;

/// A server of an empty cache, on a thread that lives as long as the tests.
fn server() -> (tempfile::TempDir, SocketAddr, String) {
    let folder = tempfile::tempdir().unwrap();
    Store::open(folder.path()).unwrap();
    let site = Site::new(folder.path().to_owned(), Vec::new(), Vec::new());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let listen = Listen { host: "127.0.0.1".into(), port: 0, token: None };
        serve(site, &listen, |served| tell.send(served.clone()).unwrap()).unwrap();
    });
    let served = told.recv_timeout(Duration::from_secs(20)).unwrap();
    let token = served.url.split_once("token=").unwrap().1.to_owned();
    (folder, served.address, token)
}

/// The answer to a request of these lines.
fn ask(address: SocketAddr, lines: &[&str]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[test]
fn only_who_brings_the_token_reads_the_cache() {
    let (folder, address, token) = server();
    let host = format!("Host: {address}");
    let get =
        |path: &str, more: &[&str]| ask(address, &[&[&format!("GET {path} HTTP/1.1"), host.as_str()], more].concat());
    let cookie = format!("Cookie: other=1; sami-{}={token}", address.port());
    let bearer = format!("Authorization: Bearer {token}");
    for (path, more) in [("/", None), ("/?token=", None), ("/live", None), ("/script.js", None), ("/?token=0123", None)]
    {
        let answer = get(path, more.into_iter().collect::<Vec<&str>>().as_slice());
        assert_eq!(status(&answer), "401", "{path}");
        assert!(!answer.contains(&folder.path().display().to_string()) && !answer.contains(&token));
    }
    let wrong = format!("Cookie: sami-{}={}", address.port(), "0".repeat(token.len()));
    assert_eq!(status(&get("/", &[&wrong])), "401");
    assert_eq!(status(&get("/style.css", &[])), "200");
    let let_in = get(&format!("/runs?token={token}&last=3"), &[]);
    assert_eq!(status(&let_in), "303");
    assert!(let_in.contains("location: /runs?last=3\r\n") && let_in.contains("HttpOnly; SameSite=Lax"), "{let_in}");
    let away = get(&format!("//elsewhere.example/?token={token}"), &[]);
    assert!(away.contains("location: /elsewhere.example/\r\n"), "{away}");
    for more in [cookie.as_str(), bearer.as_str()] {
        let answer = get("/", &[more]);
        assert_eq!(status(&answer), "200", "{answer}");
        assert!(answer.contains("content-security-policy: default-src 'none';") && answer.contains("no-store"));
    }
}

#[test]
fn other_names_other_methods_and_other_paths_are_refused() {
    let (_folder, address, token) = server();
    let cookie = format!("Cookie: sami-{}={token}", address.port());
    let ask = |first: &str, host: &str, more: &str| ask(address, &[first, &format!("Host: {host}"), &cookie, more]);
    let port = address.port();
    for (host, expected) in [
        (format!("127.0.0.1:{port}"), "200"),
        (format!("localhost:{port}"), "200"),
        (format!("[::1]:{port}"), "200"),
        (format!("evil.example:{port}"), "421"),
        ("localhost.evil.example".to_owned(), "421"),
        ("127.0.0.1.evil.example".to_owned(), "421"),
        (String::new(), "421"),
    ] {
        assert_eq!(status(&ask("GET / HTTP/1.1", &host, "X: 1")), expected, "{host}");
    }
    let own = address.to_string();
    assert_eq!(status(&ask("GET / HTTP/1.1", &own, "Origin: http://evil.example")), "421");
    assert_eq!(status(&ask("GET / HTTP/1.1", &own, &format!("Origin: http://{own}"))), "200");
    assert_eq!(status(&ask("POST / HTTP/1.1", &own, "Content-Length: 0")), "405");
    assert_eq!(status(&ask("DELETE / HTTP/1.1", &own, "X: 1")), "405");
    for path in ["/../VERSION", "/%2e%2e/VERSION", "/..%2fVERSION", "/VERSION", "/index.sqlite", "//", "/\\..\\x"] {
        let answer = ask(&format!("GET {path} HTTP/1.1"), &own, "X: 1");
        assert!(["404", "400"].contains(&status(&answer)), "{path}: {answer}");
    }
    let head = ask("HEAD / HTTP/1.1", &own, "X: 1");
    assert!(status(&head) == "200" && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn a_port_that_is_taken_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = Listen { host: "127.0.0.1".into(), port: taken.local_addr().unwrap().port(), token: None };
    let site = Site::new("nowhere".into(), Vec::new(), Vec::new());
    let error = serve(site, &listen, |_| panic!("it listens")).unwrap_err();
    assert!(error.id == "ui::listen" && error.help[0].contains("--port"), "{error:?}");
}
