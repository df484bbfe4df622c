BEGIN;

CREATE SCHEMA IF NOT EXISTS app;

CREATE TABLE app."Passages_alembic_version" (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT "Passages_alembic_version_pkc" PRIMARY KEY (version_num)
);

-- Running upgrade  -> cenote_0001

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE app."Passages" (
    namespace TEXT COLLATE "C" NOT NULL, 
    id TEXT COLLATE "C" NOT NULL, 
    document_id TEXT COLLATE "C" NOT NULL, 
    content TEXT NOT NULL, 
    position BIGINT NOT NULL, 
    metadata JSONB NOT NULL, 
    content_hash TEXT NOT NULL, 
    embedding HALFVEC(5) NOT NULL, 
    embedding_model TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    CONSTRAINT "pk_Passages" PRIMARY KEY (namespace, id)
);

ALTER TABLE app."Passages" ALTER COLUMN namespace SET STORAGE MAIN, ALTER COLUMN id SET STORAGE MAIN, ALTER COLUMN document_id SET STORAGE MAIN, ALTER COLUMN metadata SET STORAGE MAIN, ALTER COLUMN content_hash SET STORAGE MAIN, ALTER COLUMN embedding SET STORAGE MAIN, ALTER COLUMN embedding_model SET STORAGE MAIN;

CREATE INDEX "ix_Passages_namespace_document_id" ON app."Passages" (namespace, document_id);

CREATE INDEX "ix_Passages_metadata" ON app."Passages" USING gin (metadata jsonb_path_ops);

CREATE INDEX "ix_Passages_embedding" ON app."Passages" USING hnsw (embedding halfvec_cosine_ops) WITH (m = 8, ef_construction = 32);

INSERT INTO app."Passages_alembic_version" (version_num) VALUES ('cenote_0001') RETURNING app."Passages_alembic_version".version_num;

-- Running upgrade cenote_0001 -> cenote_0002

UPDATE app."Passages_alembic_version" SET version_num='cenote_0002' WHERE app."Passages_alembic_version".version_num = 'cenote_0001';

-- Running upgrade cenote_0002 -> cenote_0003

UPDATE app."Passages_alembic_version" SET version_num='cenote_0003' WHERE app."Passages_alembic_version".version_num = 'cenote_0002';

-- Running upgrade cenote_0003 -> cenote_0004

UPDATE app."Passages_alembic_version" SET version_num='cenote_0004' WHERE app."Passages_alembic_version".version_num = 'cenote_0003';

COMMIT;

