//! Small things at a remote: names, bytes, and what errors mean. All calls block; the runtime that they wait on is here
//! and nowhere else.

use std::error::Error as _;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig,
};
use tokio::runtime::Runtime;

use super::error::shown;
use super::{RemoteError, credentials};
use crate::settings::{Place, RemoteSettings};
use crate::{env, fs};

/// How long to go on trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Someone asked for it and waits: minutes.
    Long,
    /// A run would go on without: seconds.
    Short,
}

/// What is to be done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written.
    Read,
    /// What is written may be the first thing there.
    Write,
}

/// The other end.
pub(super) struct Client {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    /// The same, where uploads in parts can be gone on with by another process.
    parts: Option<Arc<dyn MultipartStore>>,
    prefix: String,
    url: String,
    read_only: bool,
    /// Whether it can be asked for what it has.
    lists: bool,
    /// How long a look at what is there may take.
    limit: Option<Duration>,
    /// How often a transfer that made no progress is taken up again.
    pub(super) tries: u32,
}

type Opened = (Arc<dyn ObjectStore>, Option<Arc<dyn MultipartStore>>);

impl Client {
    /// Makes a client; nothing is asked yet.
    pub(super) fn new(settings: &RemoteSettings, patience: Patience, access: Access) -> Result<Self, RemoteError> {
        let read_only = settings.is_read_only();
        if read_only && access == Access::Write {
            return Err(RemoteError::ReadOnly { url: settings.url.clone() });
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("remote").enable_all().build()?;
        let (prefix, opened) = match &settings.place {
            Place::Directory(directory) => (String::new(), directory_store(directory, settings, access)?),
            Place::S3 { bucket, prefix } => {
                if !settings.anonymous && !credentials::for_amazon() {
                    return Err(no_credentials("s3", "`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`"));
                }
                (prefix.clone(), s3(bucket, settings, patience))
            }
            Place::Gs { bucket, prefix } => {
                if !settings.anonymous && !credentials::for_google() {
                    return Err(no_credentials("gs", "`GOOGLE_APPLICATION_CREDENTIALS` or `GOOGLE_SERVICE_ACCOUNT`"));
                }
                (prefix.clone(), gs(bucket, settings, patience))
            }
            Place::Http(url) => (String::new(), http(url, settings, patience)),
        };
        let (store, parts) = opened.map_err(|error| RemoteError::Setup { what: shown(&error.to_string()) })?;
        let (limit, tries) = match patience {
            Patience::Long => (None, 5),
            Patience::Short => (Some(settings.timeout), 1),
        };
        let url = settings.url.clone();
        let lists = !matches!(settings.place, Place::Http(_));
        Ok(Self { runtime, store, parts, prefix, url, read_only, lists, limit, tries })
    }

    /// As the user wrote it.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn path(&self, name: &str) -> Path {
        Path::from(if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) })
    }

    /// Waits for an answer, for the limit at most where there is one.
    fn wait<T>(
        &self,
        name: &str,
        answer: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Result<T, object_store::Error>, RemoteError> {
        let Some(limit) = self.limit else { return Ok(self.runtime.block_on(answer)) };
        // Made inside of the runtime: it needs its clock.
        let timed = async { tokio::time::timeout(limit, answer).await };
        self.runtime.block_on(timed).map_err(|_| RemoteError::Unreachable {
            what: format!("no answer about `{name}` within {} s", limit.as_secs()),
        })
    }

    /// Waits for a transfer, however long it takes while bytes come.
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(super) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(super) fn parts(&self) -> Option<&Arc<dyn MultipartStore>> {
        self.parts.as_ref()
    }

    /// The bytes under a name, `most` at most; `None` if there is nothing.
    pub(super) fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, RemoteError> {
        let path = self.path(name);
        let answer = async {
            let found = self.store.get(&path).await?;
            if found.meta.size > most {
                return Ok(Err(found.meta.size));
            }
            let mut bytes = Vec::with_capacity(found.meta.size as usize);
            let mut stream = found.into_stream();
            while let Some(block) = stream.try_next().await? {
                bytes.extend_from_slice(&block);
                if bytes.len() as u64 > most {
                    return Ok(Err(bytes.len() as u64));
                }
            }
            Ok(Ok(bytes))
        };
        match self.wait(name, answer)? {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(size)) => {
                Err(RemoteError::WrongBytes { name: name.to_owned(), what: format!("it is {size} bytes large") })
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Self::fault(&error)),
        }
    }

    /// How many bytes are under a name; `None` if there is nothing.
    pub(super) fn size(&self, name: &str) -> Result<Option<u64>, RemoteError> {
        let path = self.path(name);
        match self.wait(name, self.store.head(&path))? {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Self::fault(&error)),
        }
    }

    /// Begins to read a range; `Ok(None)` from a server that ignores ranges.
    pub(super) fn open(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<GetResult>, RemoteError> {
        let path = self.path(name);
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        match self.wait(name, self.store.get_opts(&path, options))? {
            Ok(found) => Ok(Some(found)),
            Err(object_store::Error::NotFound { .. }) => {
                Err(RemoteError::Incomplete { name: name.to_owned(), of: "an artifact".to_owned() })
            }
            Err(error) if ignores_ranges(&error) => Ok(None),
            Err(error) => Err(Self::fault(&error)),
        }
    }

    /// Puts bytes under a name, whatever is there.
    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), RemoteError> {
        self.may_write()?;
        let path = self.path(name);
        let done = self.block_on(self.store.put(&path, PutPayload::from(bytes)));
        done.map(drop).map_err(|error| Self::fault(&error))
    }

    /// Puts bytes under a name if there is nothing; returns whether there was nothing.
    pub(super) fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, RemoteError> {
        self.may_write()?;
        let path = self.path(name);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.block_on(self.store.put_opts(&path, PutPayload::from(bytes), options)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(Self::fault(&error)),
        }
    }

    /// Removes what is under a name; nothing is fine.
    pub(super) fn remove(&self, name: &str) -> Result<(), RemoteError> {
        self.may_write()?;
        match self.block_on(self.store.delete(&self.path(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Self::fault(&error)),
        }
    }

    /// All names under a folder, without the prefix, with their bytes, in no order.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<(String, u64)>, RemoteError> {
        let path = self.path(folder);
        let skip = if self.prefix.is_empty() { 0 } else { self.path("").as_ref().len() + 1 };
        let found = self.block_on(async {
            let mut found = Vec::new();
            let mut stream = self.store.list(Some(&path));
            while let Some(meta) = stream.next().await {
                let meta = meta?;
                found.push((meta.location.as_ref().get(skip..).unwrap_or_default().to_owned(), meta.size));
            }
            Ok::<_, object_store::Error>(found)
        });
        match found {
            Ok(found) => Ok(found),
            Err(object_store::Error::NotFound { .. }) if self.lists => Ok(Vec::new()),
            Err(error) if !self.lists => {
                let what = shown(&error.to_string());
                Err(RemoteError::Answer {
                    what: format!("a web server need not list what it has: name whole keys or ids ({what})"),
                })
            }
            Err(error) => Err(Self::fault(&error)),
        }
    }

    fn may_write(&self) -> Result<(), RemoteError> {
        if self.read_only { Err(RemoteError::ReadOnly { url: self.url.clone() }) } else { Ok(()) }
    }

    /// What an error means.
    pub(super) fn fault(error: &object_store::Error) -> RemoteError {
        use object_store::Error as E;
        let what = shown(&error.to_string());
        if matches!(error, E::PermissionDenied { .. } | E::Unauthenticated { .. }) {
            return RemoteError::Denied { what };
        }
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(error) = cause.downcast_ref::<HttpError>()
                && error.kind() != HttpErrorKind::Decode
            {
                return RemoteError::Unreachable { what };
            }
            if let Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =
                cause.downcast_ref::<io::Error>().map(io::Error::kind)
            {
                return RemoteError::Denied { what };
            }
            source = cause.source();
        }
        let later = ["429", "500", "502", "503", "504"];
        if later
            .iter()
            .any(|status| what.contains(&format!("status code: {status}")) || what.contains(&format!(" {status} ")))
        {
            return RemoteError::Unreachable { what };
        }
        RemoteError::Answer { what }
    }

    /// Waits before a transfer is taken up again.
    pub(super) fn pause(tried: u32) {
        std::thread::sleep(Duration::from_millis(200 << tried.min(6)));
    }
}

/// Whether an error says that the server sent the whole for a part.
fn ignores_ranges(error: &object_store::Error) -> bool {
    error.to_string().contains("non-partial response")
}

/// A directory. That above it must be there: a file system that is not mounted is not to be written to.
fn directory_store(
    directory: &std::path::Path,
    settings: &RemoteSettings,
    access: Access,
) -> Result<object_store::Result<Opened>, RemoteError> {
    if !directory.is_dir() {
        let above = directory.parent().is_some_and(std::path::Path::is_dir);
        if access == Access::Read || !above {
            return Err(if above {
                RemoteError::Absent { url: settings.url.clone() }
            } else {
                RemoteError::Unreachable { what: format!("no directory is above `{}`", directory.display()) }
            });
        }
        fs::create_directory(directory)?;
    }
    Ok(LocalFileSystem::new_with_prefix(directory).map(|store| {
        let store: Arc<dyn ObjectStore> = Arc::new(store.with_fsync(true));
        (store, None)
    }))
}

/// How a server is spoken to, and how often it is tried.
fn over_network(settings: &RemoteSettings, patience: Patience) -> (ClientOptions, RetryConfig) {
    // One library for TLS in the whole program, the one that the hub is spoken to with. That there is one already is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (connect, read, max_retries, retry_timeout) = match patience {
        Patience::Long => (10, 60, 8, Duration::from_secs(120)),
        Patience::Short => (3, 30, 2, settings.timeout),
    };
    let options = ClientOptions::new()
        .with_allow_http(settings.allow_http)
        .with_connect_timeout(Duration::from_secs(connect))
        .with_timeout_disabled()
        .with_read_timeout(Duration::from_secs(read))
        .with_pool_max_idle_per_host(settings.concurrency);
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(10), base: 2.0 };
    (options, RetryConfig { backoff, max_retries, retry_timeout })
}

fn no_credentials(scheme: &str, variables: &str) -> RemoteError {
    let what = format!(
        "no credentials for `{scheme}://` are in the environment ({variables}), and this machine has no role; a public \
         bucket needs `anonymous = true`"
    );
    RemoteError::Setup { what }
}

fn s3(bucket: &str, settings: &RemoteSettings, patience: Patience) -> object_store::Result<Opened> {
    let (options, retry) = over_network(settings, patience);
    let region = settings.region.clone().or_else(|| env::AWS_REGION.get()).or_else(|| env::named("AWS_DEFAULT_REGION"));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(retry)
        .with_skip_signature(settings.anonymous)
        .with_region(region.unwrap_or_else(|| "us-east-1".to_owned()));
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let store = Arc::new(builder.build()?);
    Ok((store.clone(), Some(store)))
}

fn gs(bucket: &str, settings: &RemoteSettings, patience: Patience) -> object_store::Result<Opened> {
    let (options, retry) = over_network(settings, patience);
    let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_client_options(options);
    let store = Arc::new(builder.with_retry(retry).with_skip_signature(settings.anonymous).build()?);
    Ok((store.clone(), Some(store)))
}

fn http(url: &str, settings: &RemoteSettings, patience: Patience) -> object_store::Result<Opened> {
    let (options, retry) = over_network(settings, patience);
    let store = HttpBuilder::new().with_url(url).with_client_options(options).with_retry(retry).build()?;
    Ok((Arc::new(store), None))
}

/// Does `work` for each item, so many at once; the first error ends it.
pub(super) fn in_parallel<T: Send>(
    items: Vec<T>,
    at_once: usize,
    work: impl Fn(T) -> Result<(), RemoteError> + Sync,
) -> Result<(), RemoteError> {
    let threads = at_once.min(items.len());
    if threads <= 1 {
        return items.into_iter().try_for_each(work);
    }
    let items = std::sync::Mutex::new(items.into_iter());
    let fault = std::sync::Mutex::new(None);
    let next = || items.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = next() {
                    if let Err(error) = work(item) {
                        if let Ok(mut fault) = fault.lock() {
                            fault.get_or_insert(error);
                        }
                        // No one takes another one.
                        if let Ok(mut items) = items.lock() {
                            items.by_ref().for_each(drop);
                        }
                    }
                }
            });
        }
    });
    fault.into_inner().ok().flatten().map_or(Ok(()), Err)
}
