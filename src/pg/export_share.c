/*
 * export_share.c
 *	  What the processes of a parallel export tell each other, as bytes.
 *
 * Leader and workers run the same library, so structures are copied as they
 * are; only what they point to is laid out behind them, each piece with its
 * length and aligned for whatever it may be.
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "export_internal.h"
#include "version.h"

#define NO_PIECE	PG_UINT64_MAX

typedef struct PackedExport
{
	char		version[16];	/* of the library */
	pg_uuid_t	id;
	KpgOnTypeError policy;
	KpgExactlyOnce exactly_once;
	bool		has_creation_time;
	TimestampTz creation_time;
	bool		flush_immediately;
} PackedExport;

/* ---- pieces ---- */

static void
put_piece(StringInfo out, const void *data, Size size)
{
	static const char zeros[MAXIMUM_ALIGNOF];
	uint64		length = data == NULL ? NO_PIECE : size;

	appendBinaryStringInfo(out, (const char *) &length, sizeof(length));
	if (data == NULL)
		return;
	appendBinaryStringInfo(out, data, (int) size);
	appendBinaryStringInfo(out, zeros, (int) (MAXALIGN(size) - size));
}

static void
put_text(StringInfo out, const char *text)
{
	put_piece(out, text, text == NULL ? 0 : strlen(text) + 1);
}

static void
put_array(StringInfo out, ArrayType *array)
{
	put_piece(out, array, array == NULL ? 0 : VARSIZE(array));
}

static const void *
get_piece(const char **at)
{
	uint64		length;
	const char *piece;

	memcpy(&length, *at, sizeof(length));
	*at += sizeof(length);
	if (length == NO_PIECE)
		return NULL;
	piece = *at;
	*at += MAXALIGN(length);
	return piece;
}

/* ---- the export ---- */

char *
kpg_export_pack(const KpgExport *export, Size *size)
{
	const KpgExportRequest *request = export->request;
	PackedExport packed;
	StringInfoData out;

	memset(&packed, 0, sizeof(packed));
	strlcpy(packed.version, KPG_VERSION, sizeof(packed.version));
	packed.id = export->id;
	packed.policy = export->policy;
	packed.exactly_once = export->exactly_once;
	packed.has_creation_time = request->has_creation_time;
	packed.creation_time = request->creation_time;
	packed.flush_immediately = request->flush_immediately;
	initStringInfo(&out);
	put_piece(&out, &packed, sizeof(packed));
	put_text(&out, export->database);
	put_text(&out, request->table_name);
	put_text(&out, request->mapping);
	put_array(&out, request->tags);
	put_array(&out, request->ingest_if_not_exists);
	*size = (Size) out.len;
	return out.data;
}

void
kpg_export_unpack(KpgExport *export, KpgExportRequest *request, const char *at)
{
	const PackedExport *packed = get_piece(&at);

	/* A worker loads what is installed now. */
	if (strncmp(packed->version, KPG_VERSION, sizeof(packed->version)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the library of kusto_ingest was replaced during the session"),
				 errhint("%s", kpg_version_hint())));
	memset(export, 0, sizeof(*export));
	memset(request, 0, sizeof(*request));
	export->request = request;
	export->id = packed->id;
	export->mode = KPG_MODE_QUEUED;
	export->policy = packed->policy;
	export->exactly_once = packed->exactly_once;
	request->has_creation_time = packed->has_creation_time;
	request->creation_time = packed->creation_time;
	request->flush_immediately = packed->flush_immediately;
	export->database = get_piece(&at);
	request->table_name = get_piece(&at);
	request->mapping = get_piece(&at);
	request->tags = unconstify(ArrayType *, (const ArrayType *) get_piece(&at));
	request->ingest_if_not_exists = unconstify(ArrayType *, (const ArrayType *) get_piece(&at));
}

/* ---- a blob ---- */

char *
kpg_export_pack_blob(const KcIngestBlob *blob, Size *size)
{
	StringInfoData out;

	initStringInfo(&out);
	put_piece(&out, blob, sizeof(*blob));
	put_text(&out, blob->url);
	*size = (Size) out.len;
	return out.data;
}

void
kpg_export_unpack_blob(KcIngestBlob *blob, const char *at, Size size)
{
	const char *end = at + size;

	memcpy(blob, get_piece(&at), sizeof(*blob));
	blob->url = unconstify(char *, (const char *) get_piece(&at));
	if (at != end)
		elog(ERROR, "a parallel worker has told of its blobs in another form");
}
