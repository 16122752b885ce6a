import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;

import org.apache.flink.api.common.RuntimeExecutionMode;
import org.apache.flink.api.common.eventtime.TimestampAssigner;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.MapFunction;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiterStrategy;
import org.apache.flink.connector.datagen.source.DataGeneratorSource;
import org.apache.flink.connector.datagen.source.GeneratorFunction;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.api.Schema;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.table.runtime.typeutils.InternalTypeInfo;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.logical.LogicalType;
import org.apache.flink.table.types.logical.RowType;
import org.apache.flink.types.Row;

/**
 * Flink's side of the judge (judge.py). Each line of the input names a folder with the cases 0, 1, … of one job: the rows `N.rows`, one a line, and
 * the query `N.sql` over them, which are the table tN. Each line of the output is, as JSON, the rows of each query, or what Flink has against one of them.
 */
public final class Judge {
    /** The table's columns, with their types, as flink.py writes them. */
    private static final String[] NAMES = {
        "p", "q", "n", "at_ms", "is_end", "event_id", "tool", "decision", "risk_score", "mutates_state",
    };
    private static final DataType TEXT = DataTypes.STRING();
    private static final DataType[] TYPES = {
        TEXT, TEXT, DataTypes.INT(), DataTypes.BIGINT(), DataTypes.BOOLEAN(), TEXT, TEXT, TEXT, DataTypes.INT(), DataTypes.BOOLEAN(),
    };
    private static final int AT_MS = 3;
    private static final String NULL = "\\N";

    // The jobs' functions run in this process, and find here what they read and write.
    private static final List<RowData[]> tables = new ArrayList<>();
    private static final List<Queue<String>> found = new ArrayList<>();

    public static void main(String[] arguments) throws Exception {
        PrintStream output = System.out;
        // What Flink has to say is not mixed up with the answers.
        System.setOut(System.err);
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String folder = input.readLine(); folder != null; folder = input.readLine()) {
            output.println(answerOf(Path.of(folder)));
            output.flush();
        }
    }

    private static String answerOf(Path folder) throws Exception {
        tables.clear();
        found.clear();
        StreamExecutionEnvironment environment = StreamExecutionEnvironment.createLocalEnvironment(1);
        environment.setRuntimeMode(RuntimeExecutionMode.STREAMING);
        StreamTableEnvironment views = StreamTableEnvironment.create(environment);
        for (int number = 0; Files.exists(folder.resolve(number + ".sql")); number++) {
            tables.add(read(folder.resolve(number + ".rows")));
            found.add(new ConcurrentLinkedQueue<>());
            try {
                plan(environment, views, number, Files.readString(folder.resolve(number + ".sql")));
            } catch (Exception refused) {
                return "{\"refused\":" + number + ",\"says\":" + text(causes(refused)) + "}";
            }
        }
        try {
            environment.execute("judge");
        } catch (Exception failed) {
            return "{\"failed\":true,\"says\":" + text(causes(failed)) + "}";
        }
        List<String> answers = new ArrayList<>();
        for (Queue<String> rows : found) {
            answers.add("[" + String.join(",", rows) + "]");
        }
        return "{\"answers\":[" + String.join(",", answers) + "]}";
    }

    private static RowData[] read(Path path) throws Exception {
        List<String> lines = Files.readAllLines(path);
        RowData[] rows = new RowData[lines.size()];
        for (int place = 0; place < rows.length; place++) {
            String[] values = lines.get(place).split("\t", -1);
            GenericRowData row = new GenericRowData(NAMES.length);
            for (int column = 0; column < NAMES.length; column++) {
                row.setField(column, values[column].equals(NULL) ? null : value(TYPES[column].getLogicalType(), values[column]));
            }
            rows[place] = row;
        }
        return rows;
    }

    private static Object value(LogicalType type, String text) {
        switch (type.getTypeRoot()) {
            case INTEGER:
                return Integer.valueOf(text);
            case BIGINT:
                return Long.valueOf(text);
            case BOOLEAN:
                return Boolean.valueOf(text);
            default:
                return StringData.fromString(text);
        }
    }

    /** Adds a query to the job. Its rows come in any order: what decides is their time, once all have come. */
    private static void plan(StreamExecutionEnvironment environment, StreamTableEnvironment views, int number, String query) {
        LogicalType[] types = new LogicalType[TYPES.length];
        Schema.Builder schema = Schema.newBuilder();
        for (int column = 0; column < TYPES.length; column++) {
            types[column] = TYPES[column].getLogicalType();
            schema.column(NAMES[column], TYPES[column]);
        }
        schema.columnByMetadata("ts", DataTypes.TIMESTAMP_LTZ(3), "rowtime").watermark("ts", "SOURCE_WATERMARK()");
        InternalTypeInfo<RowData> rowType = InternalTypeInfo.of(RowType.of(types, NAMES));
        DataGeneratorSource<RowData> source =
            new DataGeneratorSource<>(new Rows(number), tables.get(number).length, RateLimiterStrategy.noOp(), rowType);
        WatermarkStrategy<RowData> times = WatermarkStrategy.<RowData>noWatermarks().withTimestampAssigner(context -> new Clock());
        views.createTemporaryView("t" + number, environment.fromSource(source, times, "rows"), schema.build());
        views.toDataStream(views.sqlQuery(query)).map(new Keep(number)).sinkTo(new DiscardingSink<>());
    }

    /** What an exception says, and those that caused it. */
    private static String causes(Throwable thrown) {
        StringBuilder said = new StringBuilder();
        for (Throwable one = thrown; one != null; one = one.getCause()) {
            said.append(said.length() == 0 ? "" : " / ").append(one.getMessage());
        }
        return said.toString();
    }

    private static String text(String value) {
        StringBuilder json = new StringBuilder("\"");
        for (char sign : value.toCharArray()) {
            if (sign == '"' || sign == '\\') {
                json.append('\\').append(sign);
            } else {
                json.append(sign < ' ' ? ' ' : sign);
            }
        }
        return json.append('"').toString();
    }

    private static final class Rows implements GeneratorFunction<Long, RowData> {
        private final int table;

        Rows(int table) {
            this.table = table;
        }

        @Override
        public RowData map(Long index) {
            return tables.get(table)[index.intValue()];
        }
    }

    private static final class Clock implements TimestampAssigner<RowData> {
        @Override
        public long extractTimestamp(RowData row, long unused) {
            return row.getLong(AT_MS);
        }
    }

    private static final class Keep implements MapFunction<Row, Row> {
        private final int query;

        Keep(int query) {
            this.query = query;
        }

        @Override
        public Row map(Row row) {
            List<String> values = new ArrayList<>();
            for (int field = 0; field < row.getArity(); field++) {
                Object value = row.getField(field);
                boolean isPlain = value == null || value instanceof Number || value instanceof Boolean;
                values.add(isPlain ? String.valueOf(value) : text(value.toString()));
            }
            found.get(query).add("[" + String.join(",", values) + "]");
            return row;
        }
    }
}
