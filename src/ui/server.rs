//! The server: who may ask, and what answers.
//!
//! Approach: one handler for all addresses. It lets a request through if it names this server (against sites that have
//! their name point here), only reads, and brings the token; then it looks the path up in a table and has the page made on
//! a thread for work that waits for disks. No address is ever taken for a path of a file.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::html::{Page, SCRIPT, STYLE, Tab};
use super::live::Live;
use super::pages::{self, Answer};
use super::query::Query;
use super::token::Token;
use super::{Problem, Site};
use crate::diag::Diagnostic;
use crate::exec;

/// Pages that are made at once.
const AT_ONCE: usize = 8;
/// What a page may do: show itself, its style, its script and pictures, and ask this server. Nothing else, from nowhere else.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// Headers of every answer.
const HEADERS: [(header::HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Where to listen.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Name or number of a network interface's address.
    pub host: String,
    /// The port; 0 for one that is free.
    pub port: u16,
    /// A file that keeps the token from start to start; without one each start has its own.
    pub token: Option<PathBuf>,
}

/// A server that listens.
#[derive(Debug, Clone)]
pub struct Served {
    /// What to open in a browser, token and all.
    pub url: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What every request is answered from.
struct Server {
    site: Arc<Site>,
    live: Live,
    token: Token,
    /// Names besides addresses and `localhost` that this server goes by.
    names: Vec<String>,
    cookie: String,
}

/// Listens, tells where, and answers until an interrupt.
///
/// Errs if the address cannot be listened at, or the file of the token holds none.
pub fn serve(site: Site, listen: &Listen, tell: impl FnOnce(&Served)) -> Result<(), Diagnostic> {
    let system = |error: io::Error| Diagnostic::error("ui::system", format!("the server cannot start: {error}"));
    let token = match &listen.token {
        Some(file) => Token::of_file(file)?,
        None => Token::new().map_err(system)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(AT_ONCE)
        .enable_io()
        .enable_time()
        .build()
        .map_err(system)?;
    let served = runtime.block_on(async {
        let host = listen.host.trim_start_matches('[').trim_end_matches(']');
        let listener =
            tokio::net::TcpListener::bind((host, listen.port)).await.map_err(|error| refused(listen, &error))?;
        let address = listener.local_addr().map_err(system)?;
        let shown = if address.ip().is_unspecified() { exec::host() } else { address.ip().to_string() };
        let shown = if shown.contains(':') { format!("[{shown}]") } else { shown };
        let url = format!("http://{shown}:{}/?token={}", address.port(), token.text());
        let site = Arc::new(site);
        let server = Arc::new(Server {
            live: Live::follow(Arc::clone(&site)),
            site,
            token,
            names: vec![host.to_ascii_lowercase(), exec::host().to_ascii_lowercase()],
            // Cookies know no ports: two servers on a machine must not take each other's.
            cookie: format!("sami-{}", address.port()),
        });
        let stop = interrupted().map_err(system)?;
        tell(&Served { url, address });
        let router = Router::new().fallback(answer).with_state(server);
        tokio::select! {
            ended = axum::serve(listener, router) => ended.map_err(system),
            _ = stop => Ok(()),
        }
    });
    // Pages that are being made, and streams, are for readers who have gone.
    runtime.shutdown_background();
    served
}

fn refused(listen: &Listen, error: &io::Error) -> Diagnostic {
    let place = format!("{}:{}", listen.host, listen.port);
    let told = Diagnostic::error("ui::listen", format!("cannot listen at {place}: {error}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            told.help("another program has this port: give another `--port`, or leave it out to get one that is free")
        }
        io::ErrorKind::PermissionDenied => told.help("ports below 1024 are the system's: give a larger `--port`"),
        _ => told.help("give `--listen` an address of this machine, such as `127.0.0.1` or `0.0.0.0`"),
    }
}

/// Ends with the first interrupt.
fn interrupted() -> io::Result<tokio::sync::oneshot::Receiver<()>> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    std::thread::Builder::new().name("interrupts".into()).stack_size(1 << 18).spawn(move || {
        if signals.forever().next().is_some() {
            let _ = tell.send(());
        }
    })?;
    Ok(told)
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    let is_head = request.method == Method::HEAD;
    let mut response = server.respond(&request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if is_head {
        *response.body_mut() = Body::empty();
    }
    response
}

impl Server {
    async fn respond(&self, request: &Parts) -> Response {
        if !self.is_for_us(&request.headers) {
            let help = "open the address that `sami ui` printed";
            return refuse(&Problem::new(421, "this server does not go by the name that was asked for", help));
        }
        if request.method != Method::GET && request.method != Method::HEAD {
            return refuse(&Problem::new(405, "pages can be read only", "use GET"));
        }
        let (path, query) = (request.uri.path(), Query::parse(request.uri.query().unwrap_or_default()));
        if path == "/style.css" {
            // The page that refuses, too, is to be readable.
            return text("text/css; charset=utf-8", STYLE.to_owned());
        }
        if query.get("token").is_some_and(|token| self.token.is(token)) {
            return self.let_in(path, &query);
        }
        if !self.brings_token(&request.headers) {
            let help = "open the address that `sami ui` printed, with all that stands after `?token=`; if it was started \
                        again since, it printed a new one";
            return refuse(&Problem::new(401, "the token is missing, or is not that of this server", help));
        }
        match path {
            "/script.js" => text("text/javascript; charset=utf-8", SCRIPT.to_owned()),
            "/live" => self.live.stream(),
            _ => self.page(path.to_owned(), query).await,
        }
    }

    /// Whether the names in a request are this server's. A name that someone else has point here is not; an address is no name.
    fn is_for_us(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
        let own = |host: &str| {
            let name = match host.rsplit_once(':') {
                Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
                _ => host,
            };
            let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
            name == "localhost" || name.parse::<IpAddr>().is_ok() || self.names.contains(&name)
        };
        // What another site has a browser ask for says so.
        let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
        own(host) && origin.is_none_or(|origin| origin.strip_prefix("http://") == Some(host))
    }

    fn brings_token(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut cookies = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|one| one.trim().split_once('='));
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        cookies.any(|(name, value)| name == self.cookie && self.token.is(value))
            || bearer.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|token| self.token.is(token))
    }

    /// Has the browser keep the token and ask again without it, so that it is in no address that is copied or remembered.
    fn let_in(&self, path: &str, query: &Query) -> Response {
        let rest = query.without("token");
        let place = if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") };
        // `//host` would be another server.
        let place = format!("/{}", place.trim_start_matches(['/', '\\']));
        let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Lax", self.cookie, self.token.text());
        (StatusCode::SEE_OTHER, [(header::LOCATION, place), (header::SET_COOKIE, cookie)]).into_response()
    }

    async fn page(&self, path: String, query: Query) -> Response {
        let Some(make) = pages::find(&path) else {
            return refuse(&Problem::new(404, format!("there is no page `{path}`"), "begin at the overview"));
        };
        let site = Arc::clone(&self.site);
        let made = tokio::task::spawn_blocking(move || make(&site, &query).and_then(Answer::into_text)).await;
        match made {
            Ok(Ok((kind, body))) => text(kind, body),
            Ok(Err(problem)) => refuse(&problem),
            Err(_) => {
                let help = "it is a bug in `sami`: please report it with what it wrote where it was started";
                refuse(&Problem::new(500, "the page could not be made", help))
            }
        }
    }
}

fn text(kind: &'static str, body: String) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

/// A problem as a page.
pub(super) fn refuse(problem: &Problem) -> Response {
    let title = problem.findings.first().map_or("", |finding| finding.title.as_str());
    let page = Page::new(Tab::Overview, title, "problem.html").with("problem", problem);
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = page.html().unwrap_or_else(|_| title.to_owned());
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], body).into_response()
}
