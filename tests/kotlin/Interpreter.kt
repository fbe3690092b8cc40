// LiteRT's Interpreter on a JVM: a Python process runs the file in LiteRT; see tests/litert_process.py.

package org.tensorflow.lite

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.util.Base64

class Interpreter(model: ByteBuffer, options: Options) : AutoCloseable {
    class Options {
        var numThreads = 1
    }

    private val file = File.createTempFile("model", ".tflite")
    private val process: Process

    init {
        file.outputStream().channel.use { it.write(model) }
        val python = System.getenv("LITERT_PYTHON")
        process = ProcessBuilder(python, System.getenv("LITERT_PROCESS"), file.path)
            .redirectError(ProcessBuilder.Redirect.INHERIT).start()
    }

    private val input = process.outputStream.bufferedWriter()
    private val output = process.inputStream.bufferedReader()

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signature: String) {
        input.write("$signature\n")
        for ((name, value) in inputs) {
            val floats = value as FloatBuffer
            require(floats.isDirect && floats.position() == 0) { "$name: not a direct buffer at its start" }
            val bytes = ByteBuffer.allocate(4 * floats.capacity()).order(ByteOrder.LITTLE_ENDIAN)
            bytes.asFloatBuffer().put(floats.duplicate())
            input.write("$name ${Base64.getEncoder().encodeToString(bytes.array())}\n")
        }
        input.write("\n")
        input.flush()
        while (true) {
            val line = output.readLine() ?: throw IllegalStateException("LiteRT's process ended")
            if (line.isEmpty()) break
            val (name, text) = line.split(" ")
            val bytes = ByteBuffer.wrap(Base64.getDecoder().decode(text)).order(ByteOrder.LITTLE_ENDIAN)
            val floats = outputs[name] as FloatBuffer? ?: continue
            require(floats.capacity() == bytes.capacity() / 4) { "$name has ${bytes.capacity() / 4} numbers" }
            floats.duplicate().put(bytes.asFloatBuffer())
        }
    }

    override fun close() {
        input.close()
        process.waitFor()
        file.delete()
    }
}
