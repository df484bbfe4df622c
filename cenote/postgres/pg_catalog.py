"""Tables and views of Postgres' system catalogue, with the columns that cenote reads."""

from __future__ import annotations

from sqlalchemy import ARRAY, REAL, Boolean, Integer, column, table

pg_am = table("pg_am", column("oid"), column("amname"))
pg_attrdef = table("pg_attrdef", column("adrelid"), column("adnum"), column("adbin"))
pg_attribute = table(
    "pg_attribute",
    column("attrelid"),
    column("attname"),
    column("atttypid"),
    column("atttypmod", Integer),
    column("attnum"),
    column("attnotnull"),
    column("attidentity"),
    column("attisdropped"),
    column("attcollation"),
    column("attstattarget"),
    column("attacl"),
    column("attoptions"),
)
pg_class = table(
    "pg_class",
    column("oid"),
    column("relname"),
    column("relnamespace"),
    column("relowner"),
    column("relam"),
    column("reltablespace"),
    column("relpersistence"),
    column("relkind"),
    column("relrowsecurity"),
    column("relforcerowsecurity"),
    column("relreplident"),
    column("relacl"),
    column("reltuples", REAL),
    column("reloptions"),
    column("relpartbound"),
    column("relispartition", Boolean),
)
pg_collation = table("pg_collation", column("oid"), column("collname"))
pg_constraint = table(
    "pg_constraint",
    column("oid"),
    column("conname"),
    column("contype"),
    column("conrelid"),
    column("conindid"),
    column("conparentid"),
    column("confrelid"),
    column("coninhcount"),
)
pg_database = table("pg_database", column("oid"), column("datname"))
pg_depend = table("pg_depend", column("objid"), column("refobjid"), column("deptype"))
pg_description = table("pg_description", column("objoid"))
pg_extension = table(
    "pg_extension", column("extname"), column("extnamespace"), column("extversion")
)
pg_index = table(
    "pg_index",
    column("indexrelid"),
    column("indrelid"),
    column("indnatts"),
    column("indnkeyatts"),
    column("indkey", ARRAY(Integer)),
    column("indisprimary"),
    column("indisclustered"),
    column("indisvalid"),
    column("indclass", ARRAY(Integer)),
    column("indcollation", ARRAY(Integer)),
    column("indoption", ARRAY(Integer)),
    column("indisunique"),
    column("indnullsnotdistinct"),
    column("indpred"),
)
pg_inherits = table(
    "pg_inherits",
    column("inhrelid"),
    column("inhparent"),
    column("inhdetachpending", Boolean),
)
pg_locks = table(
    "pg_locks",
    column("locktype"),
    column("database"),
    column("classid"),
    column("objid"),
    column("pid"),
    column("granted"),
)
pg_namespace = table("pg_namespace", column("oid"), column("nspname"))
pg_opclass = table("pg_opclass", column("oid"), column("opcname"), column("opcdefault", Boolean))
pg_policy = table(
    "pg_policy",
    column("polname"),
    column("polrelid"),
    column("polcmd"),
    column("polpermissive"),
    column("polroles"),
    column("polqual"),
    column("polwithcheck"),
)
pg_publication = table("pg_publication", column("puballtables", Boolean))
pg_publication_namespace = table("pg_publication_namespace", column("pnnspid"))
pg_publication_rel = table("pg_publication_rel", column("prrelid"))
pg_rewrite = table("pg_rewrite", column("oid"), column("ev_class"))
pg_sequence = table("pg_sequence", column("seqrelid"))
pg_settings = table("pg_settings", column("name"), column("setting"))
pg_stat_progress_create_index = table(
    "pg_stat_progress_create_index",
    column("pid"),
    column("phase"),
    column("current_locker_pid"),
    column("blocks_total"),
    column("blocks_done"),
)
pg_statistic_ext = table("pg_statistic_ext", column("stxrelid"))
pg_trigger = table("pg_trigger", column("tgrelid"), column("tgisinternal"))
pg_ts_config = table("pg_ts_config", column("oid"), column("cfgname"), column("cfgnamespace"))
pg_type = table(
    "pg_type", column("oid"), column("typname"), column("typnamespace"), column("typcollation")
)
