BEGIN;

CREATE TABLE cenote_chunks_alembic_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT cenote_chunks_alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> cenote_0001

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE cenote_chunks (
    namespace TEXT COLLATE "C" NOT NULL, 
    id TEXT COLLATE "C" NOT NULL, 
    document_id TEXT COLLATE "C" NOT NULL, 
    content TEXT NOT NULL, 
    position BIGINT NOT NULL, 
    metadata JSONB NOT NULL, 
    content_hash TEXT NOT NULL, 
    embedding VECTOR(4) NOT NULL, 
    embedding_model TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    CONSTRAINT pk_cenote_chunks PRIMARY KEY (namespace, id)
)
 PARTITION BY HASH (namespace);

ALTER TABLE cenote_chunks ALTER COLUMN namespace SET STORAGE MAIN, ALTER COLUMN id SET STORAGE MAIN, ALTER COLUMN document_id SET STORAGE MAIN, ALTER COLUMN metadata SET STORAGE MAIN, ALTER COLUMN content_hash SET STORAGE MAIN, ALTER COLUMN embedding SET STORAGE MAIN, ALTER COLUMN embedding_model SET STORAGE MAIN;

CREATE TABLE cenote_chunks_p00 PARTITION OF cenote_chunks FOR VALUES WITH (MODULUS 2, REMAINDER 0);

CREATE TABLE cenote_chunks_p01 PARTITION OF cenote_chunks FOR VALUES WITH (MODULUS 2, REMAINDER 1);

CREATE INDEX ix_cenote_chunks_namespace_document_id ON cenote_chunks (namespace, document_id);

CREATE INDEX ix_cenote_chunks_metadata ON cenote_chunks USING gin (metadata jsonb_path_ops);

CREATE INDEX ix_cenote_chunks_embedding ON cenote_chunks USING hnsw (embedding vector_cosine_ops) WITH (m = 16, ef_construction = 64);

INSERT INTO cenote_chunks_alembic_version (version_num) VALUES ('cenote_0001') RETURNING cenote_chunks_alembic_version.version_num;

-- Running upgrade cenote_0001 -> cenote_0002

ALTER TABLE cenote_chunks ADD COLUMN content_tsv TSVECTOR GENERATED ALWAYS AS (CASE lower(metadata ->> ('language' :: text)) WHEN ('english' :: text) THEN to_tsvector('english' :: regconfig, regexp_replace(
        regexp_replace(left(content, 130000), '<!--.*?-->', ' ', 'g'),
        '<!-(?=-)|[-._~/@](?:[A-Za-z0-9]*[-._~/@]){31}', '\& ', 'g'
    )) ELSE to_tsvector('spanish' :: regconfig, regexp_replace(
        regexp_replace(left(content, 130000), '<!--.*?-->', ' ', 'g'),
        '<!-(?=-)|[-._~/@](?:[A-Za-z0-9]*[-._~/@]){31}', '\& ', 'g'
    )) END) STORED NOT NULL;

CREATE INDEX ix_cenote_chunks_content_tsv ON cenote_chunks USING gin (content_tsv);

UPDATE cenote_chunks_alembic_version SET version_num='cenote_0002' WHERE cenote_chunks_alembic_version.version_num = 'cenote_0001';

-- Running upgrade cenote_0002 -> cenote_0003

DROP POLICY IF EXISTS cenote_permits ON cenote_chunks;

CREATE POLICY cenote_permits ON cenote_chunks AS PERMISSIVE USING (true);

DROP POLICY IF EXISTS cenote_restricts ON cenote_chunks;

CREATE POLICY cenote_restricts ON cenote_chunks AS RESTRICTIVE USING (namespace = nullif(current_setting('cenote.namespace', true), ''));

ALTER TABLE cenote_chunks ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS cenote_permits ON cenote_chunks_p00;

CREATE POLICY cenote_permits ON cenote_chunks_p00 AS PERMISSIVE USING (true);

DROP POLICY IF EXISTS cenote_restricts ON cenote_chunks_p00;

CREATE POLICY cenote_restricts ON cenote_chunks_p00 AS RESTRICTIVE USING (namespace = nullif(current_setting('cenote.namespace', true), ''));

ALTER TABLE cenote_chunks_p00 ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS cenote_permits ON cenote_chunks_p01;

CREATE POLICY cenote_permits ON cenote_chunks_p01 AS PERMISSIVE USING (true);

DROP POLICY IF EXISTS cenote_restricts ON cenote_chunks_p01;

CREATE POLICY cenote_restricts ON cenote_chunks_p01 AS RESTRICTIVE USING (namespace = nullif(current_setting('cenote.namespace', true), ''));

ALTER TABLE cenote_chunks_p01 ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

UPDATE cenote_chunks_alembic_version SET version_num='cenote_0003' WHERE cenote_chunks_alembic_version.version_num = 'cenote_0002';

COMMIT;

