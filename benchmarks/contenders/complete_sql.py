"""The SQL of a complete search, as cenote compiled it at 1f4661a.

It is frozen: cenote's own statements change, and this baseline of the comparison must not. The text
equals the compiled statement except for whitespace. The literals depend on the search:

- ``{fetch}``: number of rows that the ANN scan has to find: limit + 40, rounded up to 1, 2 or
  5 * 10^n;
- ``{visits}``: minimum number of rows that the scan may visit: 10 * fetch;
- ``{row_bytes}``: approximate size of a row: 4 * dimensions + 600.
"""

from __future__ import annotations

UNFILTERED = """
WITH cenote_saved AS MATERIALIZED (
    SELECT current_setting('hnsw.ef_search', true) AS ef_search,
        current_setting('hnsw.iterative_scan', true) AS iterative_scan,
        current_setting('hnsw.max_scan_tuples', true) AS max_scan_tuples
), cenote_few AS MATERIALIZED (
    SELECT count(*) AS matches
    FROM (
        SELECT 1 FROM cenote_chunks WHERE cenote_chunks.namespace = $2::VARCHAR LIMIT 1001
    ) AS cenote_matching
), cenote_settings AS MATERIALIZED (
    SELECT set_config('hnsw.ef_search', $1::VARCHAR, true) AS ef_search,
        set_config('hnsw.iterative_scan', 'relaxed_order', true) AS iterative_scan,
        set_config('hnsw.max_scan_tuples', CAST(CAST(greatest({visits}, least(
            ((CAST(pg_relation_size((
                SELECT tableoid FROM cenote_chunks
                WHERE cenote_chunks.namespace = $2::VARCHAR LIMIT 1
            )) AS DOUBLE PRECISION) / CAST({row_bytes} AS NUMERIC)) * {fetch})
            / CAST(7500 AS NUMERIC),
            sqrt(((CAST(pg_relation_size((
                SELECT tableoid FROM cenote_chunks
                WHERE cenote_chunks.namespace = $2::VARCHAR LIMIT 1
            )) AS DOUBLE PRECISION) / CAST({row_bytes} AS NUMERIC)) * {fetch})
            / CAST(2 AS NUMERIC)),
            2147483647)) AS INTEGER) AS TEXT), true) AS max_scan_tuples
    FROM cenote_saved JOIN cenote_few ON cenote_few.matches > 1000
), cenote_ann AS MATERIALIZED (
    SELECT cenote_nearest.id AS id, cenote_nearest.document_id AS document_id,
        cenote_nearest.content AS content, cenote_nearest.position AS position,
        cenote_nearest.metadata AS metadata, cenote_nearest.content_hash AS content_hash,
        cenote_nearest.distance AS distance
    FROM cenote_settings JOIN LATERAL (
        SELECT cenote_chunks.id AS id, cenote_chunks.document_id AS document_id,
            cenote_chunks.content AS content, cenote_chunks.position AS position,
            cenote_chunks.metadata AS metadata, cenote_chunks.content_hash AS content_hash,
            cenote_chunks.embedding <=> $3::VECTOR AS distance
        FROM cenote_chunks
        WHERE cenote_chunks.namespace = $2::VARCHAR AND cenote_settings.ef_search IS NOT NULL
        ORDER BY cenote_chunks.embedding <=> $3::VECTOR LIMIT {fetch}
    ) AS cenote_nearest ON true
), cenote_hits AS MATERIALIZED (
    SELECT cenote_ann.id AS id, cenote_ann.document_id AS document_id,
        cenote_ann.content AS content, cenote_ann.position AS position,
        cenote_ann.metadata AS metadata, cenote_ann.content_hash AS content_hash,
        cenote_ann.distance AS distance, true AS by_ann
    FROM cenote_ann
    WHERE (SELECT count(*) AS count_1 FROM cenote_ann) >= {fetch}
    UNION ALL
    SELECT cenote_exact.id AS id, cenote_exact.document_id AS document_id,
        cenote_exact.content AS content, cenote_exact.position AS position,
        cenote_exact.metadata AS metadata, cenote_exact.content_hash AS content_hash,
        cenote_exact.distance AS distance, false AS by_ann
    FROM (
        SELECT cenote_chunks.id AS id, cenote_chunks.document_id AS document_id,
            cenote_chunks.content AS content, cenote_chunks.position AS position,
            cenote_chunks.metadata AS metadata, cenote_chunks.content_hash AS content_hash,
            (cenote_chunks.embedding <=> $3::VECTOR) + 0 AS distance
        FROM cenote_chunks
        WHERE cenote_chunks.namespace = $2::VARCHAR
            AND (SELECT count(*) AS count_1 FROM cenote_ann) < {fetch}
        ORDER BY distance, cenote_chunks.id LIMIT $4::BIGINT
    ) AS cenote_exact
)
SELECT cenote_hits.id, cenote_hits.document_id, cenote_hits.content, cenote_hits.position,
    CAST(cenote_hits.metadata AS TEXT) AS metadata, cenote_hits.content_hash,
    cenote_hits.distance, cenote_hits.by_ann, 1 - cenote_hits.distance AS score
FROM cenote_hits
WHERE cenote_hits.distance <= 2
    AND (
        SELECT count(concat(
            set_config('hnsw.ef_search', cenote_saved.ef_search, true),
            set_config('hnsw.iterative_scan', cenote_saved.iterative_scan, true),
            set_config('hnsw.max_scan_tuples', cenote_saved.max_scan_tuples, true)
        )) AS count_2
        FROM cenote_saved WHERE (SELECT count(*) AS count_3 FROM cenote_hits) >= 0
    ) >= 0
ORDER BY cenote_hits.distance + 0, cenote_hits.id LIMIT $4::BIGINT
"""
"""Arguments: ef_search (text), namespace, query vector, limit."""

FILTERED = """
WITH cenote_saved AS MATERIALIZED (
    SELECT current_setting('hnsw.ef_search', true) AS ef_search,
        current_setting('hnsw.iterative_scan', true) AS iterative_scan,
        current_setting('hnsw.max_scan_tuples', true) AS max_scan_tuples
), cenote_few AS MATERIALIZED (
    SELECT count(*) AS matches, max(cenote_matching.tableoid) AS partition
    FROM (
        SELECT tableoid FROM cenote_chunks
        WHERE cenote_chunks.namespace = $2::VARCHAR
            AND (cenote_chunks.metadata @> CAST($3::VARCHAR AS JSONB)) LIMIT 1001
    ) AS cenote_matching
), cenote_settings AS MATERIALIZED (
    SELECT set_config('hnsw.ef_search', $1::VARCHAR, true) AS ef_search,
        set_config('hnsw.iterative_scan', 'relaxed_order', true) AS iterative_scan,
        set_config('hnsw.max_scan_tuples', CAST(CAST(greatest({visits}, least(
            ((CAST(pg_relation_size(cenote_few.partition) AS DOUBLE PRECISION)
            / CAST({row_bytes} AS NUMERIC)) * {fetch}) / CAST(7500 AS NUMERIC),
            sqrt(((CAST(pg_relation_size(cenote_few.partition) AS DOUBLE PRECISION)
            / CAST({row_bytes} AS NUMERIC)) * {fetch}) / CAST(2 AS NUMERIC)),
            2147483647)) AS INTEGER) AS TEXT), true) AS max_scan_tuples
    FROM cenote_saved JOIN cenote_few ON cenote_few.matches > 1000
), cenote_ann AS MATERIALIZED (
    SELECT cenote_nearest.id AS id, cenote_nearest.document_id AS document_id,
        cenote_nearest.content AS content, cenote_nearest.position AS position,
        cenote_nearest.metadata AS metadata, cenote_nearest.content_hash AS content_hash,
        cenote_nearest.distance AS distance
    FROM cenote_settings JOIN LATERAL (
        SELECT cenote_chunks.id AS id, cenote_chunks.document_id AS document_id,
            cenote_chunks.content AS content, cenote_chunks.position AS position,
            cenote_chunks.metadata AS metadata, cenote_chunks.content_hash AS content_hash,
            cenote_chunks.embedding <=> $4::VECTOR AS distance
        FROM cenote_chunks
        WHERE cenote_chunks.namespace = $2::VARCHAR
            AND CASE WHEN (cenote_chunks.metadata @> CAST($3::VARCHAR AS JSONB))
                THEN true ELSE false END
            AND cenote_settings.ef_search IS NOT NULL
        ORDER BY cenote_chunks.embedding <=> $4::VECTOR LIMIT {fetch}
    ) AS cenote_nearest ON true
), cenote_hits AS MATERIALIZED (
    SELECT cenote_ann.id AS id, cenote_ann.document_id AS document_id,
        cenote_ann.content AS content, cenote_ann.position AS position,
        cenote_ann.metadata AS metadata, cenote_ann.content_hash AS content_hash,
        cenote_ann.distance AS distance, true AS by_ann
    FROM cenote_ann
    WHERE (SELECT count(*) AS count_1 FROM cenote_ann) >= {fetch}
    UNION ALL
    SELECT cenote_exact.id AS id, cenote_exact.document_id AS document_id,
        cenote_exact.content AS content, cenote_exact.position AS position,
        cenote_exact.metadata AS metadata, cenote_exact.content_hash AS content_hash,
        cenote_exact.distance AS distance, false AS by_ann
    FROM (
        SELECT cenote_chunks.id AS id, cenote_chunks.document_id AS document_id,
            cenote_chunks.content AS content, cenote_chunks.position AS position,
            cenote_chunks.metadata AS metadata, cenote_chunks.content_hash AS content_hash,
            (cenote_chunks.embedding <=> $4::VECTOR) + 0 AS distance
        FROM cenote_chunks
        WHERE cenote_chunks.namespace = $2::VARCHAR
            AND (cenote_chunks.metadata @> CAST($3::VARCHAR AS JSONB))
            AND (SELECT count(*) AS count_1 FROM cenote_ann) < {fetch}
        ORDER BY distance, cenote_chunks.id LIMIT $5::BIGINT
    ) AS cenote_exact
)
SELECT cenote_hits.id, cenote_hits.document_id, cenote_hits.content, cenote_hits.position,
    CAST(cenote_hits.metadata AS TEXT) AS metadata, cenote_hits.content_hash,
    cenote_hits.distance, cenote_hits.by_ann, 1 - cenote_hits.distance AS score
FROM cenote_hits
WHERE cenote_hits.distance <= 2
    AND (
        SELECT count(concat(
            set_config('hnsw.ef_search', cenote_saved.ef_search, true),
            set_config('hnsw.iterative_scan', cenote_saved.iterative_scan, true),
            set_config('hnsw.max_scan_tuples', cenote_saved.max_scan_tuples, true)
        )) AS count_2
        FROM cenote_saved WHERE (SELECT count(*) AS count_3 FROM cenote_hits) >= 0
    ) >= 0
    AND (
        SELECT count(*) AS count_4 FROM generate_series(1, 1000000000000) AS anon_1
        WHERE NOT $6::BOOLEAN
    ) >= 0
ORDER BY cenote_hits.distance + 0, cenote_hits.id LIMIT $5::BIGINT
"""
"""Arguments: ef_search (text), namespace, filter (JSON), query vector, limit, true.

The last argument keeps the server from preferring a generic plan.
"""
