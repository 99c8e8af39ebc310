/*
 * capture_arguments.c
 *	  What a capture trigger's arguments say: ('database', 'table' [, 'server' [,
 *	  'option=value' ...]]), or the same as one argument, with semicolons.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/varlena.h"

#include "capture_internal.h"
#include "report.h"

#define FIXED_ARGUMENTS 3

typedef void (*ReadFn) (const Trigger *trigger, char *value, KpgCaptureArguments *arguments);

static void
bad_value(const Trigger *trigger, const char *option, const char *value, const char *wanted)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\" of trigger \"%s\": \"%s\"", option, trigger->tgname, value),
			 errhint("%s", wanted)));
}

static bool
read_bool(const Trigger *trigger, const char *option, const char *value)
{
	bool		result;

	if (!parse_bool(value, &result))
		bad_value(trigger, option, value, "Valid values are \"true\" and \"false\".");
	return result;
}

static void
read_old_values(const Trigger *trigger, char *value, KpgCaptureArguments *arguments)
{
	arguments->old_values = read_bool(trigger, "old_values", value);
}

static void
read_create_table(const Trigger *trigger, char *value, KpgCaptureArguments *arguments)
{
	arguments->create_table = read_bool(trigger, "create_table", value);
}

static void
read_columns(const Trigger *trigger, char *value, KpgCaptureArguments *arguments)
{
	/* The names point into the copy. */
	if (!SplitIdentifierString(pstrdup(value), ',', &arguments->columns) || arguments->columns == NIL)
		bad_value(trigger, "columns", value, "It is a list of column names, separated by commas.");
}

static void
read_on_type_error(const Trigger *trigger, char *value, KpgCaptureArguments *arguments)
{
	(void) kpg_format_policy(value);
	arguments->on_type_error = value;
}

static void
read_origin(const Trigger *trigger, char *value, KpgCaptureArguments *arguments)
{
	char	   *slash = strchr(value, '/');
	char	   *end = NULL;
	unsigned long database = 0;

	errno = 0;
	if (slash != NULL && value[0] >= '0' && value[0] <= '9' && slash[1] >= '0' && slash[1] <= '9')
	{
		arguments->system_identifier = strtoull(value, &end, 10);
		if (end == slash)
			database = strtoul(slash + 1, &end, 10);
	}
	if (end == NULL || *end != '\0' || errno != 0 || database > OID_MAX || arguments->system_identifier == 0)
		bad_value(trigger, "origin", value,
				  "It is written by kusto_capture(): a system identifier, a slash and the OID of a database.");
	arguments->database_oid = (Oid) database;
}

static const struct
{
	const char *name;
	ReadFn		read;
}			options[] = {
	{"old_values", read_old_values},
	{"columns", read_columns},
	{"create_table", read_create_table},
	{"on_type_error", read_on_type_error},
	{"origin", read_origin}
};

static ReadFn
find_option(const char *name)
{
	for (size_t i = 0; i < lengthof(options); i++)
	{
		if (strcmp(options[i].name, name) == 0)
			return options[i].read;
	}
	return NULL;
}

static void
unknown_option(const Trigger *trigger, const char *name)
{
	const char *names[lengthof(options)];
	const char *closest;

	for (size_t i = 0; i < lengthof(options); i++)
		names[i] = options[i].name;
	closest = kpg_report_closest(name, names, (int) lengthof(names));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid option \"%s\" of trigger \"%s\"", name, trigger->tgname),
			 closest != NULL
			 ? errhint("Perhaps you meant the option \"%s\".", closest)
			 : errhint("Valid options are \"old_values\", \"columns\", \"create_table\", \"on_type_error\" "
					   "and \"origin\".")));
}

static void
read_option(const Trigger *trigger, const char *argument, KpgCaptureArguments *arguments)
{
	char	   *name = pstrdup(argument);
	char	   *equals = strchr(name, '=');
	ReadFn		read;

	if (equals == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" of trigger \"%s\" is not an option", argument, trigger->tgname),
				 errhint("After database, table and server come options, such as 'old_values=true'.")));
	*equals = '\0';
	read = find_option(name);
	if (read == NULL)
		unknown_option(trigger, name);
	read(trigger, equals + 1, arguments);
}

/* Whoever leaves the server out is led to it, and not to look for one of that name. */
static void
check_server(const Trigger *trigger, const char *server)
{
	const char *equals = strchr(server, '=');

	if (equals != NULL && find_option(pnstrdup(server, equals - server)) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the third argument of trigger \"%s\" is an option", trigger->tgname),
				 errhint("The third argument is the server; '' means the default one.")));
}

char **
kpg_capture_arguments_split(const char *joined, int *n)
{
	char	   *at = pstrdup(joined);
	char	  **arguments;

	*n = 1;
	for (const char *c = at; *c != '\0'; c++)
		*n += *c == KPG_CAPTURE_SEPARATOR;
	arguments = palloc(sizeof(char *) * (Size) *n);
	for (int i = 0; i < *n; i++)
	{
		arguments[i] = at;
		at += strcspn(at, (char[]) {KPG_CAPTURE_SEPARATOR, '\0'});
		*at++ = '\0';
	}
	return arguments;
}

void
kpg_capture_arguments_read(const Trigger *trigger, KpgCaptureArguments *arguments)
{
	char	  **args = trigger->tgargs;
	int			n = trigger->tgnargs;

	if (n == 1)
		args = kpg_capture_arguments_split(args[0], &n);
	if (n < FIXED_ARGUMENTS - 1 || args[0][0] == '\0' || args[1][0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" does not say where to send row changes", trigger->tgname),
				 errhint("Use EXECUTE FUNCTION kusto_capture_changes('database', 'table').")));

	memset(arguments, 0, sizeof(*arguments));
	arguments->database = args[0];
	arguments->table_name = args[1];
	arguments->on_type_error = "error";
	if (n >= FIXED_ARGUMENTS && args[2][0] != '\0')
	{
		check_server(trigger, args[2]);
		arguments->server = args[2];
	}
	for (int i = FIXED_ARGUMENTS; i < n; i++)
		read_option(trigger, args[i], arguments);
}
