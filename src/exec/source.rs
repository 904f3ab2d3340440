//! What enters from outside: slices of datasets, and models.
//!
//! Both are inputs by content. A slice becomes an artifact of its own, so that a row that no node takes makes nothing
//! stale; a model's files are hashed where they are (`model`). What a source was is remembered by its declaration and the
//! stamps of its files, so that one that no one touched is not read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::Range;

use serde_json::json;

use super::ExecError;
use super::model::{Located, absent, hub_finding, locate, open_hub};
use crate::diag::Diagnostic;
use crate::digest::{Digest, Hasher};
use crate::endpoint::{self, Endpoint};
use crate::fs::Stamp;
use crate::hub::HubError;
use crate::pipeline::check;
use crate::pipeline::dataset::{self, DatasetSpec, Row, RowFile, RowSource};
use crate::pipeline::{ArtifactType, Link, Origin, Pipeline, Target};
use crate::store::{Blob, Health, Index, Manifest, Stamps, Store, StoreError};

/// A source as nodes take it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source {
    /// Rows of a dataset.
    Rows { dataset: String, skip: u64, take: Option<u64> },
    /// A model from outside.
    Model(String),
}

impl Source {
    /// The source that a link leads to, if it is one.
    pub(super) fn of(link: &Link) -> Option<Self> {
        match &link.target {
            Target::Node(_) => None,
            Target::Model(name) => Some(Self::Model(name.clone())),
            Target::Dataset(name) => {
                let input = &link.field.input;
                Some(Self::Rows { dataset: name.clone(), skip: input.skip.unwrap_or(0), take: input.take })
            }
        }
    }
}

/// The slices of a dataset that nodes take, as rows left out and taken, each with a place where it is written.
type Slices = BTreeMap<(u64, Option<u64>), Range<usize>>;

/// Content ids of sources.
#[derive(Debug, Default)]
pub(super) struct Sources {
    ids: HashMap<Source, Digest>,
    /// Models and datasets that are to be downloaded before anything is known of them, each with its bytes if those are
    /// known.
    absent: BTreeMap<String, Option<u64>>,
}

/// What sources are read for.
struct Reader<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    /// Whether what is read is put into the store, too.
    put: bool,
}

impl Sources {
    /// Finds the content ids of all sources that the nodes take; with `put`, what has to be read is put into the store.
    ///
    /// Errs with every source that cannot be read.
    pub(super) fn resolve(
        pipeline: &Pipeline,
        nodes: &[usize],
        store: &Store,
        index: &mut Index,
        put: bool,
    ) -> Result<Self, ExecError> {
        let mut models: BTreeSet<&str> = BTreeSet::new();
        let mut datasets: BTreeMap<&str, Slices> = BTreeMap::new();
        for link in nodes.iter().flat_map(|node| &pipeline.nodes[*node].links) {
            match &link.target {
                Target::Node(_) => {}
                Target::Model(name) => _ = models.insert(name),
                Target::Dataset(name) => {
                    let slice = (link.field.input.skip.unwrap_or(0), link.field.input.take);
                    datasets.entry(name).or_default().entry(slice).or_insert_with(|| link.span.clone());
                }
            }
        }
        let reader = Reader { pipeline, store, put };
        let (mut sources, mut findings) = (Self::default(), Vec::new());
        for (name, slices) in datasets {
            reader.dataset(name, &slices, index, &mut sources, &mut findings)?;
        }
        for name in models {
            reader.model(name, index, &mut sources, &mut findings)?;
        }
        if findings.is_empty() { Ok(sources) } else { Err(ExecError::Sources(findings)) }
    }

    /// The content ids of all of them.
    pub(super) fn artifacts(&self) -> Vec<Digest> {
        let mut ids: Vec<Digest> = self.ids.values().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The content id of what a link leads to, if that is a source.
    pub(super) fn id(&self, link: &Link) -> Option<Digest> {
        Source::of(link).and_then(|source| self.ids.get(&source).copied())
    }

    /// The model or dataset that a link leads to, with its bytes, if it has to be downloaded first.
    pub(super) fn absent(&self, link: &Link) -> Option<(&String, Option<u64>)> {
        match &link.target {
            Target::Model(name) | Target::Dataset(name) => {
                self.absent.get_key_value(name).map(|(name, bytes)| (name, *bytes))
            }
            Target::Node(_) => None,
        }
    }

    /// What is here of a source. Else it is noted as to be downloaded, or what is wrong with it among the findings.
    fn here<T>(
        &mut self,
        name: &str,
        located: Result<Located<T>, Box<Diagnostic>>,
        findings: &mut Vec<Diagnostic>,
    ) -> Option<T> {
        match located {
            Ok(Located::Here(found)) => return Some(found),
            Ok(Located::Absent { bytes }) => _ = self.absent.insert(name.to_owned(), bytes),
            Err(finding) => findings.push(*finding),
        }
        None
    }
}

/// Sees to it that a source is in the store and whole before a node takes it. Returns what is wrong if it is no longer
/// what it was when its id was found.
pub(super) fn provide(
    pipeline: &Pipeline,
    store: &Store,
    source: &Source,
    id: &Digest,
    stamps: &mut Stamps,
) -> Result<Option<String>, StoreError> {
    let changed = |name: &str| Some(format!("`{name}` changed while the run went on"));
    match source {
        Source::Rows { dataset, skip, take } => {
            if store.health(id, stamps)? == Health::Whole {
                return Ok(None);
            }
            let Some(spec) = pipeline.datasets.get(dataset) else { return Ok(changed(dataset)) };
            let Ok(Located::Here(files)) = row_files(spec, pipeline) else { return Ok(changed(dataset)) };
            let Ok(rows) = dataset::read(spec, &files) else { return Ok(changed(dataset)) };
            let put = rows_artifact(dataset::slice(&rows, Some(*skip), *take), Some(store))?;
            Ok(if put == *id { None } else { changed(dataset) })
        }
        Source::Model(name) => {
            let Some(model) = pipeline.models.get(name) else { return Ok(changed(name)) };
            if let Origin::Endpoint { endpoint, .. } = &model.origin {
                let whole = store.health(id, stamps)? == Health::Whole;
                let same = whole || endpoint_artifact(endpoint, Some(store))? == *id;
                return Ok(if same { None } else { changed(name) });
            }
            // Files of a commit stay what they are, whatever the branch has become in the meantime.
            let pinned = matches!(model.origin, Origin::Hub(_)) && store.manifest(id).is_ok();
            if !(pinned && store.external(id)?.is_some()) {
                let Ok(Located::Here(place)) = locate(name, model, pipeline) else {
                    return Ok(Some(format!("the files of model `{name}` are gone")));
                };
                if store.manifest(id).is_err() || store.external(id)?.as_ref() != Some(&place.external) {
                    let put = place.artifact(model, Some(store))?;
                    if put != *id {
                        return Ok(changed(name));
                    }
                }
            }
            Ok(match store.health(id, stamps)? {
                Health::Whole => None,
                Health::Missing(file) => Some(format!("`{file}` of model `{name}` is gone")),
                Health::Damaged(file) => {
                    Some(format!("`{file}` of model `{name}` is not what it was when it was read"))
                }
            })
        }
    }
}

impl Reader<'_> {
    fn dataset(
        &self,
        name: &str,
        slices: &Slices,
        index: &mut Index,
        sources: &mut Sources,
        findings: &mut Vec<Diagnostic>,
    ) -> Result<(), ExecError> {
        let Some(spec) = self.pipeline.datasets.get(name) else { return Ok(()) };
        let Some(files) = sources.here(name, row_files(spec, self.pipeline), findings) else { return Ok(()) };
        let (declared, steady) = declaration(spec, &files)?;
        let mut rows: Option<Vec<Row>> = None;
        for ((skip, take), span) in slices {
            let declared = declaration_of_slice(&declared, *skip, *take);
            let source = Source::Rows { dataset: name.to_owned(), skip: *skip, take: *take };
            if let Some(id) = index.source(&declared) {
                sources.ids.insert(source, id);
                continue;
            }
            let rows = match &mut rows {
                Some(rows) => rows,
                None => match check::rows(spec, &files, self.pipeline) {
                    Ok(read) => rows.insert(read),
                    Err(faults) => {
                        findings.extend(faults);
                        return Ok(());
                    }
                },
            };
            let slice = dataset::slice(rows, Some(*skip), *take);
            if slice.is_empty() {
                let what = format!("nothing is left of the {} rows of dataset `{name}`", rows.len());
                findings.push(
                    Diagnostic::error("exec::empty-slice", what)
                        .label(&self.pipeline.source, span.clone(), "takes no rows")
                        .help("lower `skip`, or raise `take`"),
                );
                continue;
            }
            let id = rows_artifact(slice, self.put.then_some(self.store))?;
            if steady {
                index.remember_source(&declared, &id);
            }
            sources.ids.insert(source, id);
        }
        Ok(())
    }

    fn model(
        &self,
        name: &str,
        index: &mut Index,
        sources: &mut Sources,
        findings: &mut Vec<Diagnostic>,
    ) -> Result<(), ExecError> {
        let Some(model) = self.pipeline.models.get(name) else { return Ok(()) };
        if let Origin::Endpoint { endpoint, .. } = &model.origin {
            let id = endpoint_artifact(endpoint, self.put.then_some(self.store))?;
            sources.ids.insert(Source::Model(name.to_owned()), id);
            return Ok(());
        }
        let Some(place) = sources.here(name, locate(name, model, self.pipeline), findings) else { return Ok(()) };
        let source = Source::Model(name.to_owned());
        let declared = place.declaration(model);
        if let Some(id) = declared.as_ref().ok().and_then(|(declared, _)| index.source(declared)) {
            sources.ids.insert(source, id);
            return Ok(());
        }
        if let Some(finding) = check::model(name, model, self.pipeline) {
            findings.push(finding);
            return Ok(());
        }
        let read = match declared {
            Ok((declared, settled)) => place.artifact(model, self.put.then_some(self.store)).inspect(|id| {
                if settled {
                    index.remember_source(&declared, id);
                }
            }),
            Err(error) => Err(error.into()),
        };
        match read {
            Ok(id) => _ = sources.ids.insert(source, id),
            Err(StoreError::Io(error)) if error.kind() != io::ErrorKind::StorageFull => findings.push(
                Diagnostic::error("exec::model-source", format!("model `{name}` cannot be read"))
                    .label(&self.pipeline.source, model.span.clone(), error.to_string())
                    .help("give a directory with config.json, tokenizer.json and *.safetensors"),
            ),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A hasher of declarations. What this version makes of a source, another one may not.
pub(super) fn hasher(what: &str) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.text(env!("CARGO_PKG_VERSION")).text(what);
    hasher
}

pub(super) fn add_stamp(hasher: &mut Hasher, stamp: &Stamp) {
    let Stamp { size, modified, changed, inode, device } = *stamp;
    hasher.number(size).number(modified as u64).number(changed as u64).number(inode).number(device);
}

/// The files of a dataset. Of one that is to be downloaded the hub is asked for the size; of one in the cache it is asked
/// nothing.
pub(super) fn row_files(spec: &DatasetSpec, pipeline: &Pipeline) -> Result<Located<Vec<RowFile>>, Box<Diagnostic>> {
    let RowSource::Hub { repo, part } = &spec.source else {
        return Ok(Located::Here(dataset::files(spec, &pipeline.directory)));
    };
    let failed = |error: HubError| Box::new(hub_finding("dataset", &spec.name, &spec.span, pipeline, &error));
    let hub = open_hub().map_err(failed)?;
    match hub.cached_rows(repo, part).map_err(|error| failed(error.into()))? {
        Some(found) => {
            let file = |(name, path)| RowFile { name: format!("{}/{name}", repo.name), path };
            Ok(Located::Here(found.files.into_iter().map(file).collect()))
        }
        None => absent(repo, hub.rows_to_download(repo, part)).map_err(failed),
    }
}

/// All that decides what rows a dataset has, and whether the stamps in it can be gone by: a file that changed just now could
/// change once more before it is read, its stamp being the same.
fn declaration(spec: &DatasetSpec, files: &[RowFile]) -> Result<(Digest, bool), StoreError> {
    let mut hasher = hasher("dataset");
    let mut steady = true;
    if let RowSource::Template { rows, seed, template } = &spec.source {
        hasher.text("make").number(*rows).number(*seed).text(template);
    }
    for RowFile { path, .. } in files {
        hasher.text("file").text(&std::path::absolute(path)?.to_string_lossy());
        // A file that is not there has no rows to remember.
        let stamp = Stamp::of(path)?;
        if let Some(stamp) = &stamp {
            add_stamp(&mut hasher, stamp);
        }
        steady &= stamp.is_some_and(|stamp| stamp.is_settled());
    }
    let rest = json!({"id": spec.id, "fields": spec.fields, "unique": spec.unique, "shuffle": spec.shuffle,
        "skip": spec.skip, "take": spec.take});
    Ok((hasher.digest(&Digest::of_value(&rest)).finish(), steady))
}

fn declaration_of_slice(declared: &Digest, skip: u64, take: Option<u64>) -> Digest {
    let mut hasher = hasher("slice");
    hasher.digest(declared).number(skip).number(u64::from(take.is_some())).number(take.unwrap_or(0)).finish()
}

/// The id of the artifact of rows; it is put into the store, if one is given.
fn rows_artifact(rows: &[Row], store: Option<&Store>) -> Result<Digest, StoreError> {
    let mut bytes = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut bytes, row)?;
        bytes.push(b'\n');
    }
    artifact_of_one(ArtifactType::Dataset, "rows.jsonl", &bytes, store)
}

/// The id of the artifact of an endpoint; it is put into the store, if one is given.
fn endpoint_artifact(endpoint: &Endpoint, store: Option<&Store>) -> Result<Digest, StoreError> {
    let mut bytes = serde_json::to_vec_pretty(endpoint)?;
    bytes.push(b'\n');
    artifact_of_one(ArtifactType::Endpoint, endpoint::FILE, &bytes, store)
}

fn artifact_of_one(kind: ArtifactType, name: &str, bytes: &[u8], store: Option<&Store>) -> Result<Digest, StoreError> {
    let _section = store.map(Store::sharing).transpose()?;
    let blob = match store {
        Some(store) => store.put_bytes(bytes)?,
        None => blob_of(bytes),
    };
    let files = BTreeMap::from([(name.to_owned(), blob)]);
    let manifest = Manifest { kind: kind.name().to_owned(), files };
    match store {
        Some(store) => store.put_manifest(&manifest),
        None => Ok(manifest.id()),
    }
}

pub(super) fn blob_of(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size: bytes.len() as u64 }
}
