//! Lists of jobs: what they hold, in which order, and page by page.

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, Row, params_from_iter};
use taxiway_job::{ArrayId, Job, JobId, State};

use super::row::{JOB, job};
use super::{Store, StoreError};

/// Which jobs a list holds. Empty and none mean: all.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// In one of these states.
    pub states: Vec<State>,
    /// With all of these labels.
    pub labels: Vec<(String, String)>,
    /// With this name.
    pub name: Option<String>,
    /// Of this profile.
    pub profile: Option<String>,
    /// Submitted by them.
    pub submitted_by: Option<String>,
    /// With this external id.
    pub external_id: Option<String>,
    /// Of this array.
    pub array: Option<ArrayId>,
    /// Whose id begins like this (hexadecimal digits, hyphens where a UUID has them).
    pub id_prefix: Option<String>,
    /// The page after this one.
    pub after: Option<Cursor>,
    /// The most jobs.
    pub limit: usize,
    /// Latest submission first, else earliest.
    pub newest_first: bool,
}

/// Where a page ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub i64);

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next page begins; none on the last.
    pub next: Option<Cursor>,
}

impl Store {
    /// The ids of jobs that the filter lets through, in the order of their submission.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn job_ids(&self, filter: JobFilter) -> Result<Page<JobId>, StoreError> {
        self.read(move |db| page(db, "seq, id", &filter, |row| Ok(JobId::from_bytes(row.get("id")?)))).await
    }

    /// The jobs that the filter lets through, in the order of their submission.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn jobs(&self, filter: JobFilter) -> Result<Page<Job>, StoreError> {
        self.read(move |db| page(db, JOB, &filter, job)).await
    }
}

/// One page of what the filter lets through, with one row more than it may have looked at to know whether there is another.
fn page<T>(
    db: &Connection,
    columns: &str,
    filter: &JobFilter,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Page<T>, StoreError> {
    let (sql, values) = list_query(columns, filter);
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut page = Page { items: Vec::new(), next: None };
    let mut last = 0;
    while let Some(row) = rows.next()? {
        if page.items.len() == filter.limit {
            page.next = Some(Cursor(last));
            break;
        }
        last = row.get("seq")?;
        page.items.push(read(row)?);
    }
    Ok(page)
}

fn list_query(columns: &str, filter: &JobFilter) -> (String, Vec<Sql>) {
    let mut values: Vec<Sql> = Vec::new();
    // Every value of a user's is bound; the statement's text is ours alone.
    let mut bind = |value: Sql| {
        values.push(value);
        format!("?{}", values.len())
    };
    let mut conditions: Vec<String> = Vec::new();
    if let Some(Cursor(seq)) = filter.after {
        let beyond = if filter.newest_first { '<' } else { '>' };
        conditions.push(format!("seq {beyond} {}", bind(seq.into())));
    }
    for (column, value) in [
        ("name", &filter.name),
        ("profile", &filter.profile),
        ("external_id", &filter.external_id),
        ("submitted_by", &filter.submitted_by),
    ] {
        if let Some(value) = value {
            conditions.push(format!("{column} = {}", bind(value.clone().into())));
        }
    }
    if let Some(array) = &filter.array {
        conditions.push(format!("array_id = {}", bind(array.as_bytes().to_vec().into())));
    }
    if let Some(prefix) = &filter.id_prefix {
        let (low, high) = id_range(prefix);
        conditions.push(format!("id BETWEEN {} AND {}", bind(low.into()), bind(high.into())));
    }
    for (key, value) in &filter.labels {
        let (key, value) = (bind(key.clone().into()), bind(value.clone().into()));
        conditions.push(format!("(SELECT value FROM json_each(spec, '$.labels') WHERE key = {key}) = {value}"));
    }
    let order = format!("ORDER BY seq {} LIMIT {}", if filter.newest_first { "DESC" } else { "ASC" }, filter.limit + 1);
    let select = |state: Option<State>| {
        // Every job has a place in the line of its state, so that each part is one walk along the index of states.
        let state = state.map(|state| format!("state = '{state}'"));
        let all: Vec<&str> = conditions.iter().map(String::as_str).chain(state.as_deref()).collect();
        let condition = if all.is_empty() { String::new() } else { format!("WHERE {}", all.join(" AND ")) };
        format!("SELECT {columns} FROM jobs {condition} {order}")
    };
    let mut states = filter.states.clone();
    states.sort_unstable();
    states.dedup();
    let sql = match states.as_slice() {
        [] => select(None),
        [state] => select(Some(*state)),
        several => {
            let parts: Vec<String> =
                several.iter().map(|state| format!("SELECT * FROM ({})", select(Some(*state)))).collect();
            format!("{} {order}", parts.join(" UNION ALL "))
        }
    };
    (sql, values)
}

/// The lowest and the highest id that begin with these hexadecimal digits.
fn id_range(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let digits: Vec<u8> = prefix.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).take(32).collect();
    let filled = |fill: u8| {
        let digit = |at: usize| digits.get(at).copied().unwrap_or(fill);
        (0..16).map(|byte| digit(2 * byte) << 4 | digit(2 * byte + 1)).collect()
    };
    (filled(0), filled(15))
}
